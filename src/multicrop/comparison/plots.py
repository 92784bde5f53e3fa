"""The plots of the report as files for papers: PNG and PDF."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.comparison.leaderboard import Block

MOST_ROWS = 30
HEAD, TAIL = 14, 30  # characters of a long label that are kept


def save_figures(blocks: Sequence[Block], folder: Path) -> list[Path]:
    """Write cost, grid and forest of each block as `<block>-<plot>.png` and `.pdf`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, block in enumerate(blocks):
        for name, draw in (("cost", _cost), ("grid", _grid), ("forest", _forest)):
            figure = Figure(figsize=(7, 4.6 if name != "forest" else 1.4 + 0.26 * min(MOST_ROWS, len(block.entries))), layout="constrained")
            draw(figure.subplots(), block)
            for ending in ("png", "pdf"):
                written.append(folder / f"{number}-{name}.{ending}")
                figure.savefig(written[-1], dpi=150)
    return written


def _cost(axes: Axes, block: Block) -> None:
    """Accuracy against encoder calls, and the front."""
    by_aggregator: dict[str, list[tuple[int, float]]] = {}
    for entry in block.entries:
        name = entry.records[0].choices.get("aggregator", "?")
        by_aggregator.setdefault(name, []).append((entry.encoder_calls, 100 * entry.accuracy))
    axes.set_prop_cycle(color=colormaps["tab20"].colors)
    for name, points in sorted(by_aggregator.items()):
        axes.scatter(*zip(*points, strict=True), label=name, s=22, alpha=0.8)
    front = sorted((e.encoder_calls, 100 * e.accuracy) for e in block.entries if e.on_front)
    axes.step(*zip(*front, strict=True), where="post", color="grey", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="encoder calls an image", ylabel="top-1 %")
    axes.legend(fontsize=7, ncols=2)


def _grid(axes: Axes, block: Block) -> None:
    """Best accuracy by crop policy and aggregator."""
    pairs = [(e.records[0].choices.get("aggregator", "?"), e.records[0].choices.get("crop", "?"), e.accuracy) for e in block.entries]
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
    """The difference to the baseline with its interval, best first."""
    entries = [e for e in block.entries if e.comparison]
    entries = sorted(entries, key=lambda e: e.comparison.difference)[-MOST_ROWS:]
    middle = np.array([e.comparison.difference for e in entries])
    ends = np.array([[e.comparison.low, e.comparison.high] for e in entries]).reshape(-1, 2)
    spans = np.clip(np.stack([middle - ends[:, 0], ends[:, 1] - middle]), 0, None)
    axes.errorbar(100 * middle, range(len(entries)), xerr=100 * spans, fmt="o", markersize=4, linewidth=1)
    axes.axvline(0, color="grey", linewidth=0.8)
    names = [e.label if len(e.label) <= HEAD + TAIL else f"{e.label[:HEAD]}…{e.label[-TAIL:]}" for e in entries]
    axes.set_yticks(range(len(entries)), names, fontsize=7, parse_math=False)
    axes.set_xlabel("difference to the baseline, points")
