"""Tables and pictures of experiments/tta from the records of `sweep=streams*`: python experiments/tta/tables.py FOLDER [OUTPUT]."""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multicrop.compare.statistics import Comparison, holm

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.study import POINTS, markdown, numbers, points, write_csv
from experiments.tta.pictures import cost, curves
from experiments.tta.records import METHODS, SETTINGS, Cell, Runs, accuracy, gain, mean, read

OUTPUT = Path(__file__).parent
HEADER = (
    *("data", "order", "setting", "views", "method", "orders", "images", "bare", "top1", "lowest", "highest"),
    *("gain", "low", "high", "p", "p_holm", "bare_ece", "ece", "bare_brier", "brier", "gain_first_tenth", "gain_last_tenth"),
    *("ms_per_image", "encoder_calls", "state_bytes"),
)


@dataclass(frozen=True)
class Row:
    """A cell of the tables: its streams, the paired gain, and the p-value that Holm leaves."""

    cell: Cell
    runs: Runs
    gain: Comparison
    p_holm: float

    @property
    def stream(self) -> str:
        return self.cell.data + ("" if self.cell.order == "shuffled" else f", {self.cell.order}")

    @property
    def holds(self) -> bool:
        return self.p_holm < 0.05

    def calibration(self, measure: str) -> tuple[float, float]:
        """Without the method and with it."""
        return mean(self.runs, "test", f"test/aggregated/{measure}"), mean(self.runs, "test", f"test/{measure}")

    def tenth(self, which: str) -> float:
        """The gain there, in points."""
        return POINTS * (mean(self.runs, "stream", which, "final") - mean(self.runs, "stream", which, "aggregated"))

    def line(self) -> list[object]:
        """One row of results.csv, in percent where it is an accuracy."""
        each = accuracy(self.runs)
        tops = [f"{POINTS * value:.2f}" for value in (np.mean(accuracy(self.runs, "bare")), np.mean(each), min(each), max(each))]
        tested = [*numbers(self.gain), f"{self.gain.p_value:.4f}", f"{self.p_holm:.4f}"]
        calibration = [f"{value:.3f}" for measure in ("ece", "brier") for value in self.calibration(measure)]
        tenths = [f"{self.tenth(which):.2f}" for which in ("first_tenth", "last_tenth")]
        spent = f"{mean(self.runs, 'stream', 'ms_per_image', 'final'):.2f}"
        size = [int(mean(self.runs, "stream", name)) for name in ("encoder_calls_per_image", "state_bytes")]
        images = len(next(iter(self.runs.values())).ids)
        return [*self.cell, len(self.runs), images, *tops, *tested, *calibration, *tenths, spent, *size]


def rows_of(found: dict[Cell, Runs]) -> list[Row]:
    """The cells of the tables in their order; Holm's families are the methods and settings of one stream (data and order)."""
    cells = sorted((cell for cell in found if cell.tabled), key=lambda cell: cell.place)
    rows = []
    for stream in dict.fromkeys((cell.data, cell.order) for cell in cells):
        family = [cell for cell in cells if (cell.data, cell.order) == stream]
        gains = [gain(found[cell]) for cell in family]
        corrected = holm([got.p_value for got in gains])
        rows += [Row(cell, found[cell], got, p) for cell, got, p in zip(family, gains, corrected, strict=True)]
    return rows


def overview(rows: list[Row]) -> str:
    """The gain of every method on every stream, bold where it holds after Holm."""
    lines = []
    for stream, setting in dict.fromkeys((row.stream, row.cell.setting) for row in rows):
        here = {row.cell.method: row for row in rows if (row.stream, row.cell.setting) == (stream, setting)}
        bare = POINTS * np.mean(accuracy(next(iter(here.values())).runs, "bare"))
        lines.append([stream, SETTINGS[setting], f"{bare:.1f}", *(_gain(here.get(method)) for method in METHODS)])
    return markdown(["stream", "setting", "none", *METHODS], lines)


def _gain(row: Row | None) -> str:
    if row is None:
        return "-"
    shown = f"{POINTS * row.gain.difference:+.1f}"
    return f"**{shown}**" if row.holds else shown


def holding(rows: list[Row]) -> str:
    """The gains and losses that hold after Holm, with interval, spread over orders, calibration, and the ends of the stream."""
    lines = []
    for row in (row for row in rows if row.holds):
        each = [POINTS * value for value in accuracy(row.runs)]
        spread = f" ({min(each):.1f} to {max(each):.1f})" if len(each) > 1 else ""
        shifts = ["{:.3f} → {:.3f}".format(*row.calibration(measure)) for measure in ("ece", "brier")]
        tenths = f"{row.tenth('first_tenth'):+.1f} / {row.tenth('last_tenth'):+.1f}"
        name = row.stream, SETTINGS[row.cell.setting], row.cell.method
        lines.append([*name, f"{np.mean(each):.1f}{spread}", points(row.gain), *shifts, tenths])
    return markdown(
        ["stream", "setting", "method", "top-1 (range over orders)", "gain [95 %]", "ECE", "Brier", "first / last tenth"], lines
    )


def calibrations(rows: list[Row]) -> str:
    """ECE and Brier score, the means over the shuffled streams; a method that lacks one of them has none."""
    lines = []
    for measure, setting in ((m, s) for m in ("ece", "brier") for s in SETTINGS):
        here = [row for row in rows if (row.cell.order, row.cell.setting) == ("shuffled", setting)]
        streams = {row.stream: row.calibration(measure)[0] for row in here}
        with_it = [[row.calibration(measure)[1] for row in here if row.cell.method == method] for method in METHODS]
        shown = [f"{np.mean(values):.3f}" if len(values) == len(streams) else "-" for values in with_it]
        title = {"ece": "ECE", "brier": "Brier"}[measure]
        lines.append([f"{title}, {SETTINGS[setting]}", f"{np.mean(list(streams.values())):.3f}", *shown])
    return markdown([f"mean over {len(streams)} streams", "none", *METHODS], lines)


def orders(rows: list[Row]) -> str:
    """Each online method under D&D, where the same images come shuffled and in another order: the range of its orders, and its ends."""
    both = {row.cell.data for row in rows if row.cell.order != "shuffled"}
    lines = []
    for row in rows:
        if row.cell.data in both and row.cell.setting == "dnd" and len(row.runs) > 1:
            each = [POINTS * value for value in accuracy(row.runs)]
            tenths = [f"{row.tenth(which):+.1f}" for which in ("first_tenth", "last_tenth")]
            lines.append([row.cell.method, row.stream, points(row.gain), f"{min(each):.1f} to {max(each):.1f}", *tenths])
    lines.sort(key=lambda line: METHODS.index(line[0]))
    return markdown(["method", "stream", "gain [95 %]", "range over orders", "gain in first tenth", "in last tenth"], lines)


def costs(rows: list[Row]) -> str:
    """The cost of a method beside the aggregator's: milliseconds per image under D&D and bytes of state."""
    lines = []
    for method in METHODS:
        here = {row.cell.data: row for row in rows if (row.cell.order, row.cell.setting, row.cell.method) == ("shuffled", "dnd", method)}
        spent = [f"{mean(here[d].runs, 'stream', 'ms_per_image', 'final'):.2f}" if d in here else "-" for d in ("scenes", "emoji")]
        size = [f"{mean(here[d].runs, 'stream', 'state_bytes') / 1024:,.0f}" if d in here else "-" for d in ("scenes", "emoji")]
        lines.append([method, *spent, *size])
    return markdown(["method", "ms per image, scenes", "emoji", "state, KiB, scenes", "emoji"], lines)


def texts(rows: list[Row]) -> Iterator[str]:
    """The tables of the README."""
    for title, table in (
        ("Gain in points", overview),
        ("What holds after Holm", holding),
        ("Calibration", calibrations),
        ("Orders", orders),
        ("Cost", costs),
    ):
        yield f"{title}\n\n{table(rows)}\n"


def main() -> None:
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    found = read(Path(sys.argv[1]))
    rows = rows_of(found)
    write_csv(output / "results.csv", HEADER, [row.line() for row in rows])
    for dataset in dict.fromkeys(row.cell.data.split(", ")[0] for row in rows):
        curves(found, dataset, output / f"curves_{dataset}.png")
    with (output / "results.csv").open(encoding="utf-8", newline="") as stream:
        cost(list(csv.DictReader(stream)), output / "cost.png")
    print(*texts(rows), sep="\n")


if __name__ == "__main__":
    main()
