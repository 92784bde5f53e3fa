"""The plots of the report as PNG and PDF files."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.compare.details import by_class
from multicrop.compare.leaderboard import Block
from multicrop.files import save_figure

MOST_ROWS = 30
MOST_NAMED = 80  # classes
LEAST_STEP = 0.04  # of a logarithmic axis, between two ticks
HEAD, TAIL = 14, 30  # characters kept of a long label


def save_figures(blocks: Sequence[Block], folder: Path) -> list[Path]:
    """Write the plots of each block: cost, grid, forest, classes of the best paired method, and accuracy by shots for few-shot runs.

    A plot that would show a single point, cell or class is left out.

    Args:
        blocks: Blocks of compared methods.
        folder: Where the files are written; it is made if missing.

    Returns:
        Paths of the files, ``<block>-<plot>.png`` and ``.pdf``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, block in enumerate(blocks):
        plots = {name: draw for name, (draw, values) in PLOTS.items() if len(values(block)) > 1}
        for name, draw in plots.items():
            figure = Figure(figsize=(7, 4.6 if name != "forest" else 1.4 + 0.26 * min(MOST_ROWS, len(block.entries))), layout="constrained")
            draw(figure.subplots(), block)
            for ending in ("png", "pdf"):
                written.append(folder / f"{number}-{name}.{ending}")
                save_figure(figure, written[-1], dpi=150)
    return written


def _shots(axes: Axes, block: Block) -> None:
    """Accuracy by number of shots, one curve per method."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in block.entries:
        if not (shots := entry.runs[0].shots):
            continue
        name = entry.label.replace(f", shots={shots}", "")
        curves.setdefault(name, []).append((shots, 100 * entry.accuracy))
    axes.set_prop_cycle(color=color_sequences["tab20"])
    for name, points in sorted(curves.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, linewidth=1, label=name)
    axes.set(xlabel="shots per class", ylabel="top-1 %")
    _ticks(axes, {shots for points in curves.values() for shots, _ in points})
    axes.legend(fontsize=6, ncols=2)


def _classes(axes: Axes, block: Block) -> None:
    """Accuracy per class of the best method and of the baseline, largest gain first."""
    best = next(e for e in block.entries if e.comparison)
    parts = by_class(best)
    for shift, name, values in ((-0.2, best.label, [p.accuracy for p in parts]), (0.2, "baseline", [p.baseline for p in parts])):
        axes.bar(np.arange(len(parts)) + shift, 100 * np.array(values), width=0.4, label=name)
    names = [p.name if len(p.name) <= TAIL else f"{p.name[: TAIL - 1]}…" for p in parts] if len(parts) <= MOST_NAMED else []
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5, parse_math=False)
    axes.set_ylabel("accuracy %")
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _cost(axes: Axes, block: Block) -> None:
    """Accuracy against encoder calls, with the Pareto front."""
    by_aggregator: dict[str, list[tuple[int, float]]] = {}
    for entry in block.entries:
        name = entry.runs[0].choices.get("aggregator", "?")
        by_aggregator.setdefault(name, []).append((entry.encoder_calls, 100 * entry.accuracy))
    axes.set_prop_cycle(color=color_sequences["tab20"])
    for name, points in sorted(by_aggregator.items()):
        axes.scatter(*zip(*points, strict=True), label=name, s=22, alpha=0.8)
    front = sorted((e.encoder_calls, 100 * e.accuracy) for e in block.entries if e.on_front)
    axes.step(*zip(*front, strict=True), where="post", color="grey", linestyle=":", linewidth=1)
    _ticks(axes, {entry.encoder_calls for entry in block.entries})
    _label_front(axes, block)
    axes.set(xlabel="encoder calls per image", ylabel="top-1 %")
    axes.legend(fontsize=7, ncols=2)


def _ticks(axes: Axes, values: Collection[int]) -> None:
    """A logarithmic axis whose ticks are the values, without those that would touch the one before."""
    kept: list[int] = []
    for value in sorted(values):
        if not kept or value / kept[-1] > (max(values) / min(values)) ** LEAST_STEP:
            kept.append(value)
    axes.set_xscale("log")
    axes.set_xticks(kept, [str(value) for value in kept])
    axes.minorticks_off()


def _label_front(axes: Axes, block: Block) -> None:
    """Name the points on the cost front."""
    for entry in (e for e in block.entries if e.on_front):
        place = (entry.encoder_calls, 100 * entry.accuracy)
        left = entry.encoder_calls == max(e.encoder_calls for e in block.entries)
        shift, side = ((-5, 4), "right") if left else ((5, 4), "left")
        name = ", ".join(entry.runs[0].choices.get(group, "?") for group in ("aggregator", "crop"))
        axes.annotate(name, place, shift, textcoords="offset points", ha=side, fontsize=7, parse_math=False)


def _grid(axes: Axes, block: Block) -> None:
    """Best accuracy by crop policy and aggregator."""
    pairs = [(e.runs[0].choices.get("aggregator", "?"), e.runs[0].choices.get("crop", "?"), e.accuracy) for e in block.entries]
    rows, columns = sorted({p[0] for p in pairs}), sorted({p[1] for p in pairs})
    values = np.full((len(rows), len(columns)), np.nan)
    for row, column, accuracy in pairs:
        place = rows.index(row), columns.index(column)
        values[place] = np.nanmax([values[place], 100 * accuracy])
    shown = axes.imshow(values, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.figure.colorbar(shown, ax=axes, label="top-1 %")


def _forest(axes: Axes, block: Block) -> None:
    """The difference from the baseline with its interval, best first."""
    compared = sorted(((c.difference, c.low, c.high, e.label) for e in block.entries if (c := e.comparison)), key=lambda row: row[0])
    labels = [label for *_, label in compared[-MOST_ROWS:]]
    middle = np.array([row[0] for row in compared[-MOST_ROWS:]])
    ends = np.array([row[1:3] for row in compared[-MOST_ROWS:]]).reshape(-1, 2)
    spans = np.clip(np.stack([middle - ends[:, 0], ends[:, 1] - middle]), 0, None)
    axes.errorbar(100 * middle, range(len(labels)), xerr=100 * spans, fmt="o", markersize=4, linewidth=1)
    axes.axvline(0, color="grey", linewidth=0.8)
    names = [label if len(label) <= HEAD + TAIL else f"{label[:HEAD]}…{label[-TAIL:]}" for label in labels]
    axes.set_yticks(range(len(labels)), names, fontsize=7, parse_math=False)
    axes.set_xlabel("difference from the baseline, percent points")


def _shots_of(block: Block) -> set[int | None]:
    return {entry.runs[0].shots for entry in block.entries} - {None}


def _cells_of(block: Block) -> set[tuple[str, str]]:
    return {(e.runs[0].choices.get("aggregator", "?"), e.runs[0].choices.get("crop", "?")) for e in block.entries}


def _classes_of(block: Block) -> Sequence[str]:
    return block.first.class_names if any(entry.comparison for entry in block.entries) else ()


PLOTS: dict[str, tuple[Callable[[Axes, Block], None], Callable[[Block], Collection]]] = {  # a plot, and what it shows several of
    "cost": (_cost, lambda block: {entry.encoder_calls for entry in block.entries}),
    "grid": (_grid, _cells_of),
    "forest": (_forest, lambda block: [entry for entry in block.entries if entry.comparison]),
    "classes": (_classes, _classes_of),
    "shots": (_shots, _shots_of),
}
