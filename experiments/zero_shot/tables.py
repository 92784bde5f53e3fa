"""Tables and figures of experiments/zero_shot from its records: python experiments/zero_shot/tables.py FOLDER [OUTPUT].

FOLDER holds the records of `experiment=zero_shot/STUDY`, each study below a folder of its own name.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.compare.run import Run
from multicrop.compare.statistics import Comparison, compare_runs
from multicrop.files import save_figure

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.study import (
    POINTS,
    accuracy,
    by_setting,
    clusters_of,
    dataset_of,
    global_view,
    markdown,
    numbers,
    points,
    read_runs,
    write_csv,
)

OUTPUT = Path(__file__).parent
DATASETS = ("scenes", "emoji")
NAMES = {"dnd": "D&D", "mean_similarity": "mean similarity"}
COLOURS = {
    ("scenes", "dnd"): "#2a7f62",
    ("scenes", "mean_similarity"): "#d08a2e",
    ("emoji", "dnd"): "#3b5bb3",
    ("emoji", "mean_similarity"): "#b3365b",
}


@dataclass(frozen=True)
class Study:
    """An ablation: what is varied, and which value the default is."""

    title: str
    value: Callable[[Run], object]
    default: dict[str, object]


def _side(run: Run) -> str:
    return "{}-{}".format(*run.knobs.get("dataset.facts.crop_side"))


def _same(value: object) -> dict[str, object]:
    return dict.fromkeys(DATASETS, value)


STUDIES = {
    "n_crops": Study("number of crops", lambda run: run.knobs.get("crop.n_crops"), _same(16)),
    "crop_size": Study("side of a crop, share of the shorter side", _side, {"scenes": "0.35-0.63", "emoji": "0.5-0.9"}),
    "marginals": Study(
        "marginals: crops / descriptions",
        lambda run: f"{run.knobs.get('aggregator.view_marginal')} / {run.knobs.get('aggregator.prompt_marginal')}",
        _same("uniform / uniform"),
    ),
    "epsilon": Study("epsilon", lambda run: run.knobs.get("aggregator.epsilon"), _same(0.05)),
    "solver": Study("solver", lambda run: run.knobs.get("aggregator.solver"), _same("sinkhorn")),
    "n_descriptions": Study("descriptions per class", lambda run: run.knobs.get("prompt.max_descriptions"), {"scenes": 4, "emoji": 5}),
    "fusion_weight": Study("weight of D&D against the global view", lambda run: run.knobs.get("task.fusion_weight"), _same(1.0)),
}


@dataclass(frozen=True)
class Point:
    """One setting: its accuracy, the views that it encodes, and its paired differences to the global view and to the default."""

    dataset: str
    aggregator: str
    value: object
    views: int
    seeds: int
    accuracy: Comparison
    against_global: Comparison
    against_default: Comparison


def measure(name: str, runs: list[Run]) -> list[Point]:
    """All settings of a study, by data set, aggregator and value."""
    study = STUDIES[name]

    def setting(run: Run) -> tuple[str, str, object]:
        return dataset_of(run), run.choices["aggregator"], study.value(run)

    correct, whole, clusters = by_setting(runs, setting), global_view(runs, setting), clusters_of(runs)
    views = {setting(run): 1 + run.knobs.get("crop.n_crops") for run in runs}
    made = []
    for (dataset, aggregator, value), right in correct.items():
        key = dataset, aggregator, value
        default = correct[dataset, "dnd", study.default[dataset]]
        own = clusters[dataset]
        compared = compare_runs(right, whole[key], clusters=own), compare_runs(right, default, clusters=own)
        made.append(Point(*key, views[key], len(right), accuracy(right, own), *compared))
    return sorted(made, key=lambda p: (DATASETS.index(p.dataset), p.aggregator, isinstance(p.value, str), p.value))


def cost_figure(found: list[Point], path: Path) -> None:
    """Accuracy against the views that are encoded, with the paired interval of the difference to the global view."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axis, dataset in zip(figure.subplots(1, 2), DATASETS, strict=True):
        line = [p for p in found if p.dataset == dataset]
        base = line[0].accuracy.difference - line[0].against_global.difference
        axis.axhline(POINTS * base, color="black", linewidth=1, linestyle="--", label="global view, label prompts (1 view)")
        for shift, aggregator in ((0.98, "mean_similarity"), (1.02, "dnd")):
            chosen = sorted((p for p in line if p.aggregator == aggregator), key=lambda p: p.views)
            heights = np.array([p.accuracy.difference for p in chosen])
            low, high = (np.array([base + getattr(p.against_global, end) for p in chosen]) for end in ("low", "high"))
            spread = POINTS * np.stack([heights - low, high - heights])
            axis.errorbar(
                [shift * p.views for p in chosen],
                POINTS * heights,
                spread,
                marker="o",
                markersize=4,
                capsize=2,
                label=f"{NAMES[aggregator]}, descriptions",
                color=COLOURS[dataset, aggregator],
            )
        axis.set_xscale("log", base=2)
        ticks = sorted({p.views for p in line})
        axis.set_xticks(ticks, ticks)
        axis.set_xlabel("views encoded per image (1 + crops)")
        axis.set_title(dataset, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.axes[0].set_ylabel("top-1, %")
    save_figure(figure, path, dpi=120)


def ablation_figure(found: dict[str, list[Point]], path: Path) -> None:
    """Every other study: the paired difference to the default setting."""
    names = [name for name in found if name != "n_crops"]
    figure = Figure(figsize=(13, 4.1 * -(-len(names) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(names) // 3), 3, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        _panel(axis, STUDIES[name], found[name])
    for axis in axes[len(names) :]:
        axis.axis("off")
    save_figure(figure, path, dpi=120)


def _panel(axis: Axes, study: Study, found: list[Point]) -> None:
    lines = list(dict.fromkeys((p.dataset, p.aggregator) for p in found))
    values = sorted({p.value for p in found}, key=lambda value: (isinstance(value, str), value))
    for place, (dataset, aggregator) in enumerate(lines):
        chosen = [p for p in found if (p.dataset, p.aggregator) == (dataset, aggregator)]
        middle = np.array([p.against_default.difference for p in chosen])
        spread = [middle - [p.against_default.low for p in chosen], [p.against_default.high for p in chosen] - middle]
        rows = [values.index(p.value) + 0.16 * (place - (len(lines) - 1) / 2) for p in chosen]
        label = f"{dataset}, {NAMES[aggregator]}"
        axis.errorbar(
            POINTS * middle, rows, xerr=POINTS * np.array(spread), fmt="o", markersize=4, label=label, color=COLOURS[dataset, aggregator]
        )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(values)), [str(value) for value in values], fontsize=7)
    axis.invert_yaxis()
    axis.set_title(study.title, fontsize=9)
    axis.set_xlabel("points of top-1 against the default (95 %, paired)", fontsize=8)
    axis.grid(axis="x", alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=7)


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    found = {name: measure(name, read_runs(folder / name)) for name in STUDIES if (folder / name).is_dir()}
    header = ["study", "dataset", "aggregator", "value", "views", "seeds", "top1", *_ends("against_global"), *_ends("against_default")]
    rows = [
        [name, *_cells(p), p.seeds, numbers(p.accuracy)[0], *numbers(p.against_global), *numbers(p.against_default)]
        for name, line in found.items()
        for p in line
    ]
    write_csv(output / "results.csv", header, rows)
    if "n_crops" in found:
        cost_figure(found["n_crops"], output / "cost.png")
    if set(found) - {"n_crops"}:
        ablation_figure(found, output / "ablations.png")
    for name, line in found.items():
        print(f"\n### {STUDIES[name].title}\n")
        shown = [
            [
                p.dataset,
                NAMES[p.aggregator],
                p.value,
                p.views,
                f"{POINTS * p.accuracy.difference:.1f}",
                points(p.against_global),
                points(p.against_default),
            ]
            for p in line
        ]
        print(markdown(["data set", "aggregator", "value", "views", "top-1", "against the global view", "against the default"], shown))


def _cells(point: Point) -> list[object]:
    return [point.dataset, point.aggregator, point.value, point.views]


def _ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


if __name__ == "__main__":
    main()
