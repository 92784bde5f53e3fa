"""Tables and figure of the diagnosis from the records of `sweep=diagnosis`: python experiments/diagnosis/tables.py FOLDER [OUTPUT]."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.compare.run import Run
from multicrop.compare.statistics import Comparison, compare_runs, holm
from multicrop.files import save_figure

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.study import (
    POINTS,
    accuracy,
    by_setting,
    clusters_of,
    dataset_of,
    markdown,
    marked,
    numbers,
    read_runs,
    with_interval,
    write_csv,
)

OUTPUT = Path(__file__).parent
DATASETS = ("scenes", "emoji")
TEXTS = {"label": "label", "descriptions": "descriptions", "both": "label + descriptions", "waffle": "label + random"}
VIEWS = {"full_mean": "full image", "crops_mean": "crops, mean", "crops_dnd": "crops, D&D"}  # on the full image D&D is the mean
QUESTIONS = [
    ("descriptions_full_mean", "label_full_mean", "full image: descriptions instead of the label"),
    ("descriptions_crops_dnd", "descriptions_full_mean", "descriptions: crops (D&D) instead of the full image"),
    ("descriptions_crops_mean", "descriptions_full_mean", "descriptions: crops (mean) instead of the full image"),
    ("label_crops_mean", "label_full_mean", "label: crops instead of the full image"),
    ("descriptions_crops_dnd", "label_full_mean", "descriptions on crops (D&D) against the label on the full image"),
    ("descriptions_crops_dnd", "descriptions_crops_mean", "descriptions on crops: D&D instead of the mean"),
    ("both_crops_dnd", "both_crops_mean", "label + descriptions on crops: D&D instead of the mean"),
    ("both_full_mean", "label_full_mean", "full image: descriptions appended to the label"),
    ("waffle_full_mean", "label_full_mean", "full image: random texts appended to the label"),
    ("both_full_mean", "waffle_full_mean", "full image: descriptions against random texts appended to the label"),
    ("both_crops_dnd", "waffle_crops_dnd", "crops (D&D): descriptions against random texts appended to the label"),
    ("both_crops_dnd", "label_crops_dnd", "crops (D&D): descriptions appended to the label against the label alone"),
]
COLOURS = ("#8a8a94", "#d08a2e", "#2a7f62")
RESAMPLES = 20_000  # p-values are shares of them, and the smallest is multiplied by the number of questions


CROPS = {"full": "global", "crops": "random_k16"}  # a row's name is TEXT_VIEW_AGGREGATOR
AGGREGATORS = {"mean": "mean_similarity", "dnd": "dnd"}


def row_name(run: Run) -> str:
    """The row of a run, such as `descriptions_crops_dnd`."""
    view = next(name for name, crop in CROPS.items() if crop == run.choices["crop"])
    aggregator = next(name for name, option in AGGREGATORS.items() if option == run.choices["aggregator"])
    return f"{run.choices['experiment'].removeprefix('diagnosis/')}_{view}_{aggregator}"


def command(row: str, dataset: str) -> str:
    """The command of a row, over its three seeds."""
    text, view, aggregator = row.split("_")
    groups = f"experiment=diagnosis/{text} crop={CROPS[view]} aggregator={AGGREGATORS[aggregator]}"
    return f"python run.py -m {groups} dataset={dataset} crop_seed=0,1,2"


def results(correct: dict[tuple[str, str], np.ndarray], clusters: dict[str, Sequence[str]]) -> list[list[object]]:
    """One line per data set and row: accuracy with its interval, and the command."""
    lines = []
    for (dataset, row), right in sorted(correct.items(), key=lambda item: (DATASETS.index(item[0][0]), _order(item[0][1]))):
        got = accuracy(right, clusters[dataset])
        lines.append([dataset, row, *numbers(got), len(right), right.shape[1], command(row, dataset)])
    return lines


def _order(row: str) -> tuple[int, str]:
    return list(TEXTS).index(row.split("_")[0]), {"full_mean": "0", "full_dnd": "1", "crops_mean": "2", "crops_dnd": "3"}[
        row.split("_", 1)[1]
    ]


def comparisons(
    correct: dict[tuple[str, str], np.ndarray], clusters: dict[str, Sequence[str]]
) -> list[tuple[str, str, str, str, Comparison]]:
    return [
        (dataset, new, old, question, _compare(correct[dataset, new], correct[dataset, old], clusters[dataset]))
        for dataset in DATASETS
        for new, old, question in QUESTIONS
    ]


def _compare(new: np.ndarray, old: np.ndarray, clusters: Sequence[str]) -> Comparison:
    return compare_runs(new, old, clusters=clusters, resamples=RESAMPLES)


def draw(
    correct: dict[tuple[str, str], np.ndarray],
    clusters: dict[str, Sequence[str]],
    compared: list[tuple[str, str, str, str, Comparison]],
    corrected: Sequence[float],
    path: Path,
) -> None:
    """Above the accuracies, below the paired differences."""
    figure = Figure(figsize=(12, 8.2), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=[1, 1.05])
    for column, dataset in enumerate(DATASETS):
        _bars(axes[0, column], dataset, {row: accuracy(right, clusters[data]) for (data, row), right in correct.items() if data == dataset})
        shown = [(line[3], line[4], p) for line, p in zip(compared, corrected, strict=True) if line[0] == dataset]
        _differences(axes[1, column], shown, labels=column == 0)
    axes[0, 0].set_ylabel("top-1, %")
    axes[0, 1].legend(loc="upper right", fontsize=8)
    save_figure(figure, path, dpi=120)


def _bars(axis: Axes, dataset: str, accuracies: dict[str, Comparison]) -> None:
    for offset, (view, title) in enumerate(VIEWS.items()):
        got = [accuracies[f"{text}_{view}"] for text in TEXTS]
        heights = [POINTS * a.difference for a in got]
        spread = np.array([[POINTS * (a.difference - a.low) for a in got], [POINTS * (a.high - a.difference) for a in got]])
        places = np.arange(len(TEXTS)) + 0.27 * (offset - 1)
        axis.bar(places, heights, 0.25, yerr=spread, label=title, color=COLOURS[offset], error_kw={"linewidth": 0.8})
        for place, height, top in zip(places, heights, spread[1], strict=True):
            axis.text(place, height + top + 0.8, f"{height:.0f}", ha="center", fontsize=7)
    axis.set_xticks(range(len(TEXTS)), [title.replace(" + ", " +\n") for title in TEXTS.values()], fontsize=8)
    axis.set_ylim(0, 100)
    axis.set_title(dataset, fontsize=10)


def _differences(axis: Axes, compared: list[tuple[str, Comparison, float]], *, labels: bool) -> None:
    """One line per question, in colour where the corrected p-value is below 0.05."""
    for place, (_, got, p) in enumerate(compared):
        colour = "#8a8a94" if p >= 0.05 else "#2a7f62" if got.difference > 0 else "#b3365b"
        axis.plot([POINTS * got.low, POINTS * got.high], [place, place], color=colour, linewidth=2)
        axis.plot(POINTS * got.difference, place, "o", color=colour, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(compared)), [textwrap.fill(line[0], 40) for line in compared] if labels else [], fontsize=7)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("paired difference, points of top-1 (95 %)", fontsize=8)


def main() -> None:
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    runs = read_runs(Path(sys.argv[1]))
    correct, clusters = by_setting(runs, lambda run: (dataset_of(run), row_name(run))), clusters_of(runs)
    compared = comparisons(correct, clusters)
    corrected = holm([got.p_value for *_, got in compared])
    table = results(correct, clusters)
    write_csv(output / "results.csv", ["dataset", "row", "top1", "low", "high", "seeds", "images", "command"], table)
    lines = [
        [d, new, old, *numbers(got), f"{got.p_value:.4f}", f"{p:.4f}"] for (d, new, old, _, got), p in zip(compared, corrected, strict=True)
    ]
    write_csv(output / "comparisons.csv", ["dataset", "row", "against", "difference", "low", "high", "p", "p_holm"], lines)
    draw(correct, clusters, compared, corrected, output / "diagnosis.png")
    shown = {d: {line[1]: line for line in table if line[0] == d} for d in DATASETS}
    rows = [[f"`{row}`", *(with_interval(line[2:5], sign=False) for line in (shown[d][row] for d in DATASETS))] for row in shown["scenes"]]
    print(markdown(["row", *DATASETS], rows), end="\n\n")
    half = len(QUESTIONS)
    paired = [[compared[i][3], *(marked(compared[i + j][4], corrected[i + j]) for j in (0, half))] for i in range(half)]
    print(markdown(["question", *DATASETS], paired))


if __name__ == "__main__":
    main()
