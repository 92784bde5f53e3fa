"""What the studies' scripts share: the records below a folder, grouped into settings, and accuracies with paired intervals over seeds."""

import csv
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from multicrop.compare.run import Run, read_run
from multicrop.compare.statistics import Comparison, compare_runs
from multicrop.compare.tables import bracketed
from multicrop.files import atomic
from multicrop.record import METRICS

POINTS = 100  # accuracies are printed in percent
RANGES = {"fluent-3d": "near", "noto-v1": "middle", "streamline": "far"}  # of the test vendors from the training vendors


def dataset_of(run: Run) -> str:
    """The option of the group `dataset`."""
    return run.choices["dataset"]


def data_of(run: Run) -> str:
    """Data set and how far its vendors are from the training vendors: `scenes, middle`, `emoji, near and middle`."""
    vendors = run.config["dataset"].get("vendors") or [run.config["dataset"]["vendor"]]
    return f"{dataset_of(run)}, {' and '.join(RANGES[vendor] for vendor in vendors)}"


def distance(data: str) -> tuple[bool, ...]:
    """Sorts the names of `data_of`: scenes first, near before far."""
    return not data.startswith("scenes"), *(name not in data for name in RANGES.values())


def read_runs(folder: Path) -> list[Run]:
    """Every finished run below the folder, oldest first; raises SystemExit when there is none."""
    found = [read_run(path.parent) for path in sorted(folder.rglob(METRICS), key=lambda path: path.stat().st_mtime)]
    if not found:
        raise SystemExit(f"no finished run below {folder}; run the study's command first and pass its paths.output")
    return found


def by_setting(runs: Iterable[Run], setting: Callable[[Run], Hashable]) -> dict[Hashable, np.ndarray]:
    """What each setting got right (seeds, images); of two runs with one seed the newest counts. Checks that all saw the same images."""
    return _stacked(runs, setting, "final")


def global_view(runs: Iterable[Run], setting: Callable[[Run], Hashable]) -> dict[Hashable, np.ndarray]:
    """The same of the global view against the label prompts, which every record holds."""
    return _stacked(runs, setting, "global")


def clusters_of(runs: Iterable[Run], name: Callable[[Run], str] = dataset_of) -> dict[str, Sequence[str]]:
    """The cluster of each image, in the order of `by_setting`, for each data set; empty where the records have none."""
    return {name(run): run.sorted_predictions.cluster for run in runs}


def _stacked(runs: Iterable[Run], setting: Callable[[Run], Hashable], row: str) -> dict[Hashable, np.ndarray]:
    grouped: dict[Hashable, dict[int, Run]] = {}
    ids: dict[str, Sequence[str]] = {}
    for run in runs:
        if ids.setdefault(dataset_of(run), run.sorted_predictions.image_id) != run.sorted_predictions.image_id:
            raise SystemExit(f"the runs on {dataset_of(run)} did not see the same images; compare runs of one data set")
        grouped.setdefault(setting(run), {})[run.config["crop_seed"]] = run
    return {name: np.stack([seeds[seed].sorted_predictions.correct(row) for seed in sorted(seeds)]) for name, seeds in grouped.items()}


def accuracy(correct: np.ndarray, clusters: Sequence[str] = ()) -> Comparison:
    """The accuracy with its interval over seeds and images, or clusters: a comparison with a method that gets nothing right."""
    found = compare_runs(correct, np.zeros_like(correct), clusters=clusters)
    return replace(found, low=max(found.low, 0.0))  # of few images the interval of a difference is wider than an accuracy can be


def points(comparison: Comparison, *, sign: bool = True) -> str:
    """`+3.2 [+1.0, +5.4]`, in points of percent."""
    return bracketed(*(POINTS * value for value in (comparison.difference, comparison.low, comparison.high)), sign=sign)


def marked(comparison: Comparison, p: float) -> str:
    """`+3.2 [+1.0, +5.4]`, with `(n.s.)` where the corrected p-value is not below 0.05."""
    return f"{points(comparison)}{'' if p < 0.05 else ' (n.s.)'}"


def bold(text: str, p: float) -> str:
    """`**+3.2 [+1.0, +5.4]**` where the corrected p-value is below 0.05."""
    return f"**{text}**" if p < 0.05 else text


def numbers(comparison: Comparison) -> list[str]:
    """Difference, low and high end as three cells, in points of percent."""
    return [f"{POINTS * value:.2f}" for value in (comparison.difference, comparison.low, comparison.high)]


def with_interval(cells: Sequence[object], *, sign: bool = True) -> str:
    """The three cells of `numbers` in one: `+3.2 [+1.0, +5.4]`."""
    value, low, high = (float(str(cell)) for cell in cells)
    return bracketed(value, low, high, sign=sign)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all."""
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


@dataclass(frozen=True)
class Dots:
    """One setting in a dot plot: its colour, top-1 in percent without a method (None: not drawn), and top-1 and its interval per method."""

    title: str
    colour: str
    alone: float | None
    points: Mapping[str, tuple[float, float, float]]


def dot_plot(axis: Axes, names: Sequence[str], labels: Sequence[str], settings: Sequence[Dots]) -> None:
    """One row per method, from the top, with a dot and an interval per setting; dashed: the setting without a method."""
    for place, dots in enumerate(settings):
        rows = [row for row, name in enumerate(names) if name in dots.points]
        top, low, high = np.array([dots.points[names[row]] for row in rows]).reshape(-1, 3).T
        shifted = np.array(rows) + 0.2 * (place - (len(settings) - 1) / 2)
        spread = np.clip([top - low, high - top], 0, None)
        axis.errorbar(top, shifted, xerr=spread, fmt="o", markersize=5, capsize=2, linewidth=1.3, color=dots.colour, label=dots.title)
        if dots.alone is not None:
            axis.axvline(dots.alone, color=dots.colour, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(names)), labels, fontsize=9)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("top-1, %")
    axis.grid(axis="x", alpha=0.3)
