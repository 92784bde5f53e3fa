"""The plots of the report as PNG and PDF files."""

from collections.abc import Sequence
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
HEAD, TAIL = 14, 30  # characters kept of a long label


def save_figures(blocks: Sequence[Block], folder: Path) -> list[Path]:
    """Write the plots of each block: cost, grid, forest, classes of the best paired method, and accuracy by shots for few-shot runs.

    Args:
        blocks: Blocks of compared methods.
        folder: Where the files are written; it is made if missing.

    Returns:
        Paths of the files, ``<block>-<plot>.png`` and ``.pdf``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, block in enumerate(blocks):
        plots = {"cost": _cost, "grid": _grid, "forest": _forest}
        plots |= {"classes": _classes} if any(e.comparison for e in block.entries) else {}
        plots |= {"shots": _shots} if any(entry.runs[0].shots for entry in block.entries) else {}
        for name, draw in plots.items():
            figure = Figure(figsize=(7, 4.6 if name != "forest" else 1.4 + 0.26 * min(MOST_ROWS, len(block.entries))), layout="constrained")
            draw(figure.subplots(), block)
            for ending in ("png", "pdf"):
                written.append(folder / f"{number}-{name}.{ending}")
                save_figure(figure, written[-1], dpi=150)
    return written


def _shots(axes: Axes, block: Block) -> None:
    """Accuracy by number of shots, one curve per adapter, aggregator and crop policy."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in block.entries:
        if not (shots := entry.runs[0].shots):
            continue
        name = ", ".join(entry.runs[0].choices.get(group, "?") for group in ("adapter", "aggregator", "crop"))
        curves.setdefault(name, []).append((shots, 100 * entry.accuracy))
    axes.set_prop_cycle(color=color_sequences["tab20"])
    for name, points in sorted(curves.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, linewidth=1, label=name)
    axes.set(xlabel="shots per class", ylabel="top-1 %")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
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
    axes.set(xscale="log", xlabel="encoder calls per image", ylabel="top-1 %")
    axes.legend(fontsize=7, ncols=2)


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
