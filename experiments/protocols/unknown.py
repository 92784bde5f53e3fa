"""Tables and picture of unknown classes from the records of `sweep=unknown`: python experiments/protocols/unknown.py FOLDER."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from multicrop.compare.run import Run
from multicrop.compare.statistics import holm
from multicrop.files import save_figure
from multicrop.record import BESIDE, Detection

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.protocols.detection import MEASURES, Draws, Estimate
from experiments.study import (
    POINTS,
    RANGES,
    Dots,
    bold,
    data_of,
    dataset_of,
    distance,
    dot_plot,
    markdown,
    read_runs,
    with_interval,
    write_csv,
)

OUTPUT = Path(__file__).parent
ROWS = {"global": "global view", "crops_mean": "crops, mean", f"{BESIDE}dnd": "D&D", "final": "D&D fused"}
COLOURS = dict(zip(ROWS, ("#8a8a94", "#d08a2e", "#3d6fb6", "#2a7f62"), strict=True))
SCORES = {"mcm": "MCM", "energy": "energy", "max_logit": "maximum logit", "msp": "softmax"}
KINDS = {
    "new": "second half of the classes",
    "base": "first half of the classes",
    "scenes": "scenes of another vendor",
    "drawings": "single drawings",
    "unseen": "unseen concepts",
}
HEADER = (
    *("data", "unknown", "setting", "score", "seeds", "known_images", "unknown_images"),
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high", "_gain", "_gain_low", "_gain_high", "_p", "_p_holm")),
)
TRUST = {
    "accuracy": "top-1",
    "accuracy_at_0.8": "top-1 of 80 %",
    "aurc": "AURC",
    "adaptive_ece": "adaptive ECE",
    "class_ece": "class ECE",
    "same": "same over crop seeds",
}
Stream = tuple[str, str]  # data, and which images are unknown


def group_of(stream: Stream) -> str:
    """What the vendors of a data set have in common: `emoji against unseen concepts`."""
    return f"{stream[0].split(', ')[0]} against {KINDS[stream[1]]}"


@dataclass(frozen=True)
class Cell:
    """One setting and score on one stream: AUROC and FPR95, and what each gains over the global view with the same score."""

    stream: Stream
    row: str
    score: str
    shape: tuple[int, int, int]  # seeds, known and unknown images
    found: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]


def kind_of(run: Run) -> str:
    """Which images are unknown; a key of KINDS."""
    name = run.config["ood"]
    return name if name in KINDS else "drawings" if dataset_of(run) == "scenes" else "unseen"


def by_stream(runs: Iterable[Run]) -> dict[Stream, dict[int, Run]]:
    """The runs with unknown classes, by crop seed; of two with one seed the newest counts."""
    found: dict[Stream, dict[int, Run]] = {}
    for run in runs:
        if run.config.get("ood"):
            found.setdefault((data_of(run), kind_of(run)), {})[run.config["crop_seed"]] = run
    return dict(sorted(found.items(), key=lambda item: (list(KINDS).index(item[0][1]), distance(item[0][0]))))


def in_one_order(found: Detection | None) -> Detection:
    """Known images first, each part by id: the same order with every seed."""
    if found is None:
        raise SystemExit("a record lacks unknown.parquet; run it again with this version")
    order: list[int] = np.lexsort((np.asarray(found.image_id), ~found.known)).tolist()
    scores = {row: {name: values[order] for name, values in own.items()} for row, own in found.scores.items()}
    return Detection([found.image_id[i] for i in order], [found.cluster[i] for i in order], found.known[order], scores)


def cells_of(stream: Stream, runs: Mapping[int, Run]) -> list[Cell]:
    """Every setting and score of a stream."""
    each = [in_one_order(runs[seed].detection) for seed in sorted(runs)]
    if any(one.image_id != each[0].image_id for one in each):
        raise SystemExit(f"the runs on {stream} did not see the same images")
    known, clusters = each[0].known, np.asarray(each[0].cluster)
    draws = Draws(len(each), clusters[known].tolist(), clusters[~known].tolist())
    shape, cells = (len(each), int(known.sum()), int((~known).sum())), []
    for score in SCORES:
        values = {
            (row, measure): draws.over_seeds([getattr(draws, measure)(s[known], s[~known]) for s in (d.scores[row][score] for d in each)])
            for row in ROWS
            for measure in MEASURES
        }
        for row in ROWS:
            found = {measure: draws.estimate(values[row, measure]) for measure in MEASURES}
            gains = {measure: draws.estimate(values[row, measure] - values["global", measure]) for measure in MEASURES}
            cells.append(Cell(stream, row, score, shape, found, gains if row != "global" else {}))
    return cells


def corrected(cells: Sequence[Cell]) -> dict[tuple, float]:
    """Holm's p-values of the gains over the streams, for each setting, score and measure."""
    found = {}
    for row in list(ROWS)[1:]:
        for score in SCORES:
            own = [cell for cell in cells if (cell.row, cell.score) == (row, score)]
            for measure in MEASURES:
                adjusted = holm([cell.gains[measure].p_value for cell in own])
                found |= {(cell.stream, row, score, measure): p for cell, p in zip(own, adjusted, strict=True)}
    return found


def line(cell: Cell, p_values: Mapping[tuple, float]) -> list[object]:
    """One row of unknown.csv, in percent."""
    cells: list[object] = [cell.stream[0], KINDS[cell.stream[1]], ROWS[cell.row], cell.score, *cell.shape]
    for measure in MEASURES:
        cells += _ends(cell.found[measure])
        gain = cell.gains.get(measure)
        p = p_values.get((cell.stream, cell.row, cell.score, measure))
        cells += [*_ends(gain), f"{gain.p_value:.4f}", f"{p:.4f}"] if gain else [""] * 5
    return cells


def _ends(estimate: Estimate) -> list[str]:
    return [f"{POINTS * value:.2f}" for value in (estimate.value, estimate.low, estimate.high)]


def gains_table(cells: Sequence[Cell], p_values: Mapping[tuple, float], measure: str) -> str:
    """A line per stream: the measure of the global view and of D&D fused by each score, and the paired difference."""
    lines = []
    for stream in dict.fromkeys(cell.stream for cell in cells):
        own = {(cell.row, cell.score): cell for cell in cells if cell.stream == stream}
        shown = []
        for score in SCORES:
            plain, fused = own["global", score].found[measure].value, own["final", score]
            gain = bold(with_interval(_ends(fused.gains[measure])), p_values[stream, "final", score, measure])
            shown.append(f"{POINTS * plain:.1f}, {POINTS * fused.found[measure].value:.1f}: {gain}")
        lines.append([stream[0], KINDS[stream[1]], *shown])
    return markdown(["known", "unknown", *SCORES.values()], lines)


def settings_table(cells: Sequence[Cell]) -> str:
    """AUROC of the four settings, means over the vendors of a data set."""
    lines = []
    for group in dict.fromkeys(group_of(cell.stream) for cell in cells):
        for row, title in ROWS.items():
            own = [[c.found["auroc"].value for c in cells if (group_of(c.stream), c.row, c.score) == (group, row, s)] for s in SCORES]
            lines.append([group, title, *(f"{POINTS * np.mean(values):.1f}" for values in own)])
    return markdown(["known against unknown", "setting", *SCORES.values()], lines)


def trust_table(streams: Mapping[Stream, Mapping[int, Run]]) -> str:
    """Measures of confidence on all classes of scenes, means over crop seeds, and the images with one prediction under two seeds."""
    lines = []
    for (data, kind), runs in streams.items():
        for row, title in ROWS.items() if kind == "scenes" else ():
            found = {name: np.mean([_trust(run, row)[name] for run in runs.values()]) for name in list(TRUST)[:-1]}
            predicted = [run.sorted_predictions.rows[row] for run in runs.values()]
            found["same"] = np.mean([(one == two).mean() for one, two in combinations(predicted, 2)] or [np.nan])
            lines.append([data, title, *(f"{POINTS * found[name]:.1f}" for name in TRUST)])
    return markdown(["data", "setting", *TRUST.values()], lines)


def _trust(run: Run, row: str) -> dict[str, float]:
    return {"accuracy": run.sorted_predictions.accuracy(row), **run.metrics["trust"][row]}


def draw(cells: Sequence[Cell], path: Path) -> None:
    """AUROC of the settings with intervals: a row of panels per data set and kind of unknown images, a column per score."""
    groups, scores = list(dict.fromkeys(group_of(cell.stream) for cell in cells)), list(SCORES)[:3]
    figure = Figure(figsize=(4 * len(scores) + 0.6, 1.6 * len(groups) + 1), layout="constrained")
    axes = figure.subplots(len(groups), len(scores), squeeze=False, sharex=True, sharey=True)
    for i, group in enumerate(groups):
        for j, score in enumerate(scores):
            own = [cell for cell in cells if (group_of(cell.stream), cell.score) == (group, score)]
            dot_plot(axes[i, j], list(RANGES.values()), list(RANGES.values()), [_dots(own, row) for row in ROWS])
            axes[i, j].axvline(POINTS / 2, color="black", linewidth=0.7)
            axes[i, j].set_title(f"{group}: {SCORES[score]}", fontsize=9)
            axes[i, j].set_xlabel("AUROC, %" if i == len(groups) - 1 else "", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    note = "95 % intervals over crop seeds and clusters; 50 %: no better than chance"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, title=note, title_fontsize=9)
    save_figure(figure, path, dpi=100)


def _dots(cells: Sequence[Cell], row: str) -> Dots:
    ends = {c.stream[0].split(", ")[1]: c.found["auroc"] for c in cells if c.row == row}
    points = {name: (POINTS * e.value, POINTS * e.low, POINTS * e.high) for name, e in ends.items()}
    return Dots(ROWS[row], COLOURS[row], None, points)


def main() -> None:
    """Read the records, write unknown.csv and unknown.png, and print the tables."""
    streams = by_stream(read_runs(Path(sys.argv[1])))
    cells = [cell for stream, runs in streams.items() for cell in cells_of(stream, runs)]
    p_values = corrected(cells)
    write_csv(OUTPUT / "unknown.csv", HEADER, [line(cell, p_values) for cell in cells])
    draw(cells, OUTPUT / "unknown.png")
    tables = [gains_table(cells, p_values, measure) for measure in MEASURES]
    print("\n\n".join([*tables, settings_table(cells), trust_table(streams)]))


if __name__ == "__main__":
    main()
