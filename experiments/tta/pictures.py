"""Pictures of experiments/tta: accuracy over the stream, and accuracy and cost of each method."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from experiments.study import POINTS, Dots, dot_plot
from experiments.tta.records import METHODS, SETTINGS, Cell, Runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.files import save_figure

COLOURS = dict(
    zip(METHODS, ("#2a7f62", "#d08a2e", "#3d6fb6", "#b3365b", "#8a8a94", "#6b4fa0", "#4aa5a5", "#a0522d", "#c27ba0"), strict=True)
)
SHADES = {"global_view": "#8a8a94", "crops_mean": "#d08a2e", "dnd": "#2a7f62"}
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


def cost(lines: Sequence[Mapping[str, str]], path: Path) -> None:
    """Top-1 of each method in each setting, one panel per data set; encoder calls are in the legend, milliseconds beside the methods.

    Args:
        lines: The rows of results.csv.
        path: The file to write.
    """
    shown = [line for line in lines if line["order"] == "shuffled" and ", " not in line["data"]]
    names = [name for name in ("scenes", "emoji") if any(line["data"] == name for line in shown)]
    figure = Figure(figsize=(6.2 * len(names), 0.45 * len(METHODS) + 1.5), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        here = [line for line in shown if line["data"] == name]
        spent = {line["method"]: float(line["ms_per_image"]) for line in here}  # of the last setting, D&D
        methods = [method for method in METHODS if any(line["method"] == method for line in here)]
        labels = [f"{method}, {_milliseconds(spent[method])}" for method in methods]
        dot_plot(axis, methods, labels, [_dots(here, setting) for setting in dict.fromkeys(line["setting"] for line in here)])
        axis.set_title(name, fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    note = "dashed: without a method; interval: of the paired gain, 95 %; ms: the method's own time per image on D&D"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, title=note, title_fontsize=9)
    save_figure(figure, path, dpi=120)


def _dots(lines: Sequence[Mapping[str, str]], setting: str) -> Dots:
    """One setting of a data set; the interval is that of the gain, from the accuracy without a method."""
    own = [line for line in lines if line["setting"] == setting]
    bare, calls = float(own[0]["bare"]), own[0]["views"]
    points = {line["method"]: (float(line["top1"]), bare + float(line["low"]), bare + float(line["high"])) for line in own}
    return Dots(f"{SETTINGS[setting]} ({calls} encoder call{'s' * (calls != '1')})", SHADES[setting], bare, points)


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"
