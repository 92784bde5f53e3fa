"""Pictures of experiments/tta: accuracy over the stream, and accuracy against the encoder calls per image."""

from pathlib import Path

import numpy as np
from experiments.study import POINTS
from experiments.tta.records import METHODS, SETTINGS, VIEWS, Cell, Runs, accuracy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.files import save_figure

COLOURS = dict(
    zip(METHODS, ("#2a7f62", "#d08a2e", "#3d6fb6", "#b3365b", "#8a8a94", "#6b4fa0", "#4aa5a5", "#a0522d", "#c27ba0"), strict=True)
)
TEXT_TOWER = ("tpt", "c_tpt")  # these run it for every image, which the axis of encoder calls does not show
LOWEST, HIGHEST = -12, 12  # points; what leaves the axis is in the table


def curves(found: dict[Cell, Runs], dataset: str, path: Path) -> None:
    """Running accuracy of each online method less that of the bare aggregator, one row per stream: the mean and the range of its orders."""
    shown = {c: runs for c, runs in found.items() if c.tabled and len(runs) > 1 and c.data.split(", ")[0] == dataset}
    streams = list(dict.fromkeys((c.data, c.order) for c in sorted(shown, key=lambda c: c.place)))
    figure = Figure(figsize=(11, 2.3 * len(streams) + 0.6), layout="constrained")
    axes = figure.subplots(len(streams), len(SETTINGS), squeeze=False)
    for (row, (data, order)), (column, setting) in ((r, s) for r in enumerate(streams) for s in enumerate(SETTINGS)):
        axis = axes[row, column]
        cells = [c for c in shown if (c.data, c.order, c.setting) == (data, order, setting)]
        if not cells:
            axis.set_axis_off()
            continue
        axis.axhline(0, color="black", linewidth=0.7)
        for cell in sorted(cells, key=lambda c: c.place):
            _curve(axis, cell.method, shown[cell])
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, LOWEST), min(high, HIGHEST))
        axis.set_title(f"{data}{'' if order == 'shuffled' else f', {order}'}: {SETTINGS[setting]}", fontsize=9)
        axis.set_ylabel("points over no method" if column == 0 else "", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("images of the stream seen", fontsize=8)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines if line.get_label() in METHODS}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), fontsize=8)
    save_figure(figure, path, dpi=110)


def _curve(axis: Axes, method: str, runs: Runs) -> None:
    gains = np.stack([np.cumsum(s.final.astype(float) - s.bare) for s in runs.values()])
    seen = np.arange(1, gains.shape[1] + 1)
    start = len(seen) // 20  # the first images swing too widely to be drawn
    lines = (POINTS * gains / seen)[:, start:]
    axis.plot(seen[start:], lines.mean(0), color=COLOURS[method], label=method, linewidth=1.3)
    axis.fill_between(seen[start:], lines.min(0), lines.max(0), color=COLOURS[method], alpha=0.12, linewidth=0)


def cost(found: dict[Cell, Runs], path: Path) -> None:
    """Top-1 against encoder calls per image, one line per method; the first point of each is the global view."""
    shown = {cell: runs for cell, runs in found.items() if cell.order == "shuffled" and ", " not in cell.data}
    names = [name for name in ("scenes", "emoji") if any(cell.data == name for cell in shown)]
    figure = Figure(figsize=(11, 3.6 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(VIEWS) - 1, squeeze=False, sharex=True, sharey="row")
    for row, name in enumerate(names):
        for axis, setting in zip(axes[row], ("crops_mean", "dnd"), strict=True):
            both = {cell: runs for cell, runs in shown.items() if cell.data == name and cell.setting in ("global_view", setting)}
            _bare(axis, both)
            for method in METHODS:
                _line(axis, method, {cell.views: runs for cell, runs in both.items() if cell.method == method})
            axis.set_xscale("log")
            axis.set_xticks([1, 5, 9, 17], [1, 5, 9, 17])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.set_title(f"{name}: {SETTINGS[setting]}", fontsize=10)
        axes[row, 0].set_ylabel("top-1, %")
    for axis in axes[-1]:
        axis.set_xlabel("image encoder calls per image")
    figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS) + 1, fontsize=8)
    save_figure(figure, path, dpi=110)


def _bare(axis: Axes, cells: dict[Cell, Runs]) -> None:
    bare = {cell.views: POINTS * accuracy(runs, "bare")[0] for cell, runs in cells.items()}
    axis.plot(sorted(bare), [bare[views] for views in sorted(bare)], "--", color="black", linewidth=1.5, label="none")


def _line(axis: Axes, method: str, by_views: dict[int, Runs]) -> None:
    views = sorted(by_views)
    top = [POINTS * np.mean(accuracy(by_views[n])) for n in views]
    face = "none" if method in TEXT_TOWER else COLOURS[method]
    axis.plot(views, top, "o-", color=COLOURS[method], markerfacecolor=face, markersize=4, linewidth=1, alpha=0.85, label=method)
