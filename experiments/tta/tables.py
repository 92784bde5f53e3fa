"""Tables and pictures of experiments/tta from the records of `sweep=streams*`: python experiments/tta/tables.py FOLDER [OUTPUT]."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multicrop.compare.statistics import Comparison, holm

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.study import POINTS, RANGES, bold, markdown, numbers, write_csv
from experiments.tta.pictures import curves, inside
from experiments.tta.records import HOSTS, METHODS, SETTINGS, Cell, Runs, accuracy, difference, gain, mean, read

OUTPUT = Path(__file__).parent
HEADER = (
    *("data", "shift", "order", "setting", "views", "method", "seeds", "images", "bare", "top1", "lowest", "highest"),
    *("gain", "low", "high", "p", "p_holm", "bare_ece", "ece", "bare_brier", "brier", "gain_first_tenth", "gain_last_tenth"),
    *("ms_per_image", "encoder_calls", "state_bytes"),
)
INSIDE = ("data", "shift", "order", "method", "setting", "against", "seeds", "difference", "low", "high", "p", "p_holm")
ASKED = (("dnd_fused", "global_view"), ("dnd", "global_view"), ("dnd", "crops_mean"))  # does it help inside a host


@dataclass(frozen=True)
class Row:
    """A cell of the tables: its streams, a paired difference, and the p-value that Holm leaves; against: the other setting, or none."""

    cell: Cell
    runs: Runs
    gain: Comparison
    p_holm: float
    against: str = ""

    @property
    def holds(self) -> bool:
        return self.p_holm < 0.05

    @property
    def shown(self) -> str:
        """The difference in points, bold where it holds."""
        return bold(f"{POINTS * self.gain.difference:+.1f}", self.p_holm)

    def calibration(self, measure: str) -> tuple[float, float]:
        """Without the method and with it."""
        return mean(self.runs, "test", f"test/aggregated/{measure}"), mean(self.runs, "test", f"test/{measure}")

    def tenth(self, which: str) -> float:
        """The gain there, in points."""
        return POINTS * (mean(self.runs, "stream", which, "final") - mean(self.runs, "stream", which, "aggregated"))

    @property
    def tested(self) -> list[str]:
        return [*numbers(self.gain), f"{self.gain.p_value:.4f}", f"{self.p_holm:.4f}"]

    def line(self) -> list[object]:
        """One row of results.csv, in percent where it is an accuracy."""
        each = accuracy(self.runs)
        tops = [f"{POINTS * value:.2f}" for value in (np.mean(accuracy(self.runs, "bare")), np.mean(each), min(each), max(each))]
        calibration = [f"{value:.3f}" for measure in ("ece", "brier") for value in self.calibration(measure)]
        tenths = [f"{self.tenth(which):.2f}" for which in ("first_tenth", "last_tenth")]
        spent = f"{mean(self.runs, 'stream', 'ms_per_image', 'final'):.2f}"
        size = [int(mean(self.runs, "stream", name)) for name in ("encoder_calls_per_image", "state_bytes")]
        images = len(next(iter(self.runs.values())).ids)
        return [*self.cell, len(self.runs), images, *tops, *self.tested, *calibration, *tenths, spent, *size]

    def line_inside(self) -> list[object]:
        """One row of inside.csv."""
        cell = self.cell
        return [cell.data, cell.shift, cell.order, cell.method, cell.setting, self.against, len(self.runs), *self.tested]


def rows_of(found: dict[Cell, Runs]) -> list[Row]:
    """What each method adds to its setting; Holm's families are the methods and settings of one stream."""
    rows = []
    for family in _families(cell for cell in found if cell.tabled and cell.method != "none"):
        gains = [gain(found[cell]) for cell in family]
        rows += [Row(cell, found[cell], got, p) for cell, got, p in zip(family, gains, _holm(gains), strict=True)]
    return rows


def rows_inside(found: dict[Cell, Runs]) -> list[Row]:
    """What D&D adds inside each host: the same method in another setting; Holm's families are one question on one stream."""
    rows = []
    for better, than in ASKED:
        for family in _families(cell for cell in found if cell.tabled and cell.setting == better):
            pairs = [(cell, found.get(cell._replace(setting=than, views=1 if than == "global_view" else cell.views))) for cell in family]
            both = [(cell, other) for cell, other in pairs if other and set(other) & set(found[cell])]
            got = [difference(found[cell], other) for cell, other in both]
            rows += [Row(cell, found[cell], d, p, than) for (cell, _), d, p in zip(both, got, _holm(got), strict=True)]
    return rows


def _families(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """The cells of each stream, in the order of the tables."""
    ordered = sorted(cells, key=lambda cell: cell.place)
    for stream in dict.fromkeys(cell.stream for cell in ordered):
        yield [cell for cell in ordered if cell.stream == stream]


def _holm(gains: Sequence[Comparison]) -> list[float]:
    return holm([got.p_value for got in gains])


def answer(rows: list[Row]) -> str:
    """Does D&D help inside every host: clean scenes of each vendor, then the mean over all streams of scenes and how many are better."""
    clean = [f"scenes, {name}" for name in RANGES.values()]
    here = [row for row in rows if row.cell.data.startswith("scenes") and row.cell.order == "shuffled"]
    lines = []
    for host in HOSTS:
        own = [row for row in here if row.cell.method == host]
        first = {row.cell.stream: row for row in own if (row.cell.setting, row.against) == ASKED[0]}
        asked = [[row for row in own if (row.cell.setting, row.against) == pair] for pair in ASKED]
        lines.append([host, *(first[name].shown if name in first else "-" for name in clean), *map(_summary, asked)])
    return markdown(["method", *RANGES.values(), *(f"{SETTINGS[b]} to {SETTINGS[a]}" for b, a in ASKED)], lines)


def _summary(rows: Sequence[Row]) -> str:
    """`+12.3 (10 better, 0 worse of 12)`."""
    if not rows:
        return "-"
    up, down = (sum(row.holds and sign * row.gain.difference > 0 for row in rows) for sign in (1, -1))
    return f"{POINTS * np.mean([row.gain.difference for row in rows]):+.1f} ({up} better, {down} worse of {len(rows)})"


def gains(rows: list[Row]) -> str:
    """What each method adds to the global view, to D&D and to D&D fused on clean scenes of each vendor, and over all streams of scenes."""
    settings = ("global_view", "dnd", "dnd_fused")
    here = [row for row in rows if row.cell.data.startswith("scenes") and row.cell.order == "shuffled"]
    columns = [(name, setting) for setting in settings for name in RANGES.values()]
    lines = []
    for method in METHODS:
        own = {(row.cell.stream.removeprefix("scenes, "), row.cell.setting): row for row in here if row.cell.method == method}
        over = [_summary([row for (_, setting), row in own.items() if setting == which]) for which in settings]
        lines.append([method, *(own[column].shown if column in own else "-" for column in columns), *over])
    titles = [f"{SETTINGS[setting]}, {name}" for name, setting in columns]
    return markdown(["method", *titles, *(f"{SETTINGS[setting]}, all streams" for setting in settings)], lines)


def bare(rows: list[Row]) -> str:
    """Top-1 of the settings without a method on every stream, with the range over the seeds."""
    lines = []
    for stream in dict.fromkeys(row.cell.stream for row in rows if row.cell.order == "shuffled"):
        here = sorted((row for row in rows if row.cell.stream == stream), key=lambda row: len(row.runs))  # the last has the most seeds
        own = {row.cell.setting: accuracy(row.runs, "bare") for row in here}
        lines.append([stream, *(_range(own[setting]) if setting in own else "-" for setting in SETTINGS)])
    return markdown(["stream", *SETTINGS.values()], lines)


def _range(each: Sequence[float]) -> str:
    text = f"{POINTS * np.mean(each):.1f}"
    return f"{text} ({POINTS * min(each):.1f} to {POINTS * max(each):.1f})" if max(each) > min(each) else text


def orders(rows: list[Row]) -> str:
    """What each online method adds to D&D fused where the same images come in several orders, with its first and last tenth."""
    both = {(row.cell.data, row.cell.shift) for row in rows if row.cell.order != "shuffled"}
    here = [row for row in rows if (row.cell.data, row.cell.shift) in both and row.cell.setting == "dnd_fused"]
    names = list(dict.fromkeys((row.cell.data, row.cell.order) for row in here))
    lines = []
    for method in METHODS:
        own = {(row.cell.data, row.cell.order): row for row in here if row.cell.method == method}
        if any(order != "shuffled" for _, order in own):
            lines.append([method, *(_ends(own[name]) if name in own else "-" for name in names)])
    return markdown(["method", *(f"{data}, {order}" for data, order in names)], lines)


def _ends(row: Row) -> str:
    return f"{row.shown} ({row.tenth('first_tenth'):+.1f} / {row.tenth('last_tenth'):+.1f})"


def calibrations(rows: list[Row]) -> str:
    """ECE and Brier score with each method: means over the shuffled streams of scenes; none where a method lacks a stream."""
    lines = []
    for method in HOSTS:
        cells = []
        for measure, setting in ((m, s) for m in ("ece", "brier") for s in SETTINGS):
            here = [r for r in rows if r.cell.data.startswith("scenes") and (r.cell.order, r.cell.setting) == ("shuffled", setting)]
            own = {r.cell.stream: r.calibration(measure)[method != "none"] for r in here if method in ("none", r.cell.method)}
            whole = len(own) == len({r.cell.stream for r in here})
            cells.append(f"{np.mean(list(own.values())):.3f}" if own and whole else "-")
        lines.append([method, *cells])
    return markdown(["method", *(f"{m}, {s}" for m in ("ECE", "Brier") for s in SETTINGS.values())], lines)


def costs(rows: list[Row]) -> str:
    """The cost of a method beside the aggregator's, on clean scenes of the middle vendor under D&D: time per image, state."""
    here = {row.cell.method: row for row in rows if (row.cell.stream, row.cell.setting) == ("scenes, middle", "dnd")}
    spent = {method: mean(row.runs, "stream", "ms_per_image", "final") for method, row in here.items()}
    size = {method: mean(row.runs, "stream", "state_bytes") / 1024 for method, row in here.items()}
    return markdown(["method", "ms per image", "state, KiB"], [[m, f"{spent[m]:.2f}", f"{size[m]:,.0f}"] for m in METHODS if m in here])


def main() -> None:
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    found = read(Path(sys.argv[1]))
    rows, within = rows_of(found), rows_inside(found)
    write_csv(output / "results.csv", HEADER, [row.line() for row in rows])
    write_csv(output / "inside.csv", INSIDE, [row.line_inside() for row in within])
    inside(found, output / "inside.png")
    curves(found, output / "curves.png")
    tables = {"Inside each host": answer(within), "Without a method": bare(rows), "Gains": gains(rows)}
    tables |= {"Orders": orders(rows), "Calibration": calibrations(rows), "Cost": costs(rows)}
    print(*(f"{title}\n\n{table}\n" for title, table in tables.items()), sep="\n")


if __name__ == "__main__":
    main()
