"""Pictures of experiments/tta: D&D inside every host, and accuracy over the stream."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from experiments.study import POINTS, RANGES, Dots, accuracy, dot_plot
from experiments.tta.records import HOSTS, METHODS, ONLINE, SETTINGS, Cell, Runs
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.files import save_figure

COLOURS = dict(zip(ONLINE, colormaps["tab20"].colors, strict=False))
SHADES = {"global_view": "#8a8a94", "crops_mean": "#d08a2e", "dnd": "#3d6fb6", "dnd_fused": "#2a7f62"}
LOWEST, HIGHEST = -12, 12  # points; what leaves the axis is in the table


def inside(found: dict[Cell, Runs], path: Path) -> None:
    """Top-1 of each method in the settings, with intervals over seeds and clusters: one panel per vendor of clean scenes."""
    shown = {c: runs for c, runs in found.items() if c.tabled and c.stream in {f"scenes, {name}" for name in RANGES.values()}}
    streams = list(dict.fromkeys(c.stream for c in sorted(shown, key=lambda c: c.place)))
    figure = Figure(figsize=(4.6 * len(streams) + 0.8, 0.42 * len(HOSTS) + 1.5), layout="constrained")
    for axis, stream in zip(figure.subplots(1, len(streams), squeeze=False, sharey=True).flat, streams, strict=True):
        here = {(c.setting, c.method): runs for c, runs in shown.items() if c.stream == stream}
        dot_plot(axis, HOSTS, HOSTS, [_settings(here, setting) for setting in SETTINGS if any(s == setting for s, _ in here)])
        axis.set_title(stream, fontsize=11)
    _legend(figure, "dashed: without a method; interval of the accuracy, 95 %, over seeds (crops and orders) and clusters")
    save_figure(figure, path, dpi=120)


def _settings(here: Mapping[tuple[str, str], Runs], setting: str) -> Dots:
    """One setting of a stream, in percent."""
    own = {method: runs for (name, method), runs in here.items() if name == setting}
    alone = POINTS * np.mean([stream.bare.mean() for stream in next(iter(own.values())).values()])
    points = {}
    for method, runs in own.items():
        got = accuracy(np.stack([runs[seed].by_id("final") for seed in sorted(runs)]), next(iter(runs.values())).clusters)
        points[method] = tuple(POINTS * value for value in (got.difference, got.low, got.high))
    return Dots(SETTINGS[setting], SHADES[setting], alone, points)


def _legend(figure: Figure, note: str) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, title=note, title_fontsize=9)


def curves(found: dict[Cell, Runs], path: Path) -> None:
    """Running accuracy of each online method less that of the bare aggregator, one row per vendor of clean scenes: mean and range."""
    shown = {c: runs for c, runs in found.items() if c.tabled and c.method in ONLINE and (c.shift, c.order) == ("", "shuffled")}
    streams = list(dict.fromkeys(c.stream for c in sorted(shown, key=lambda c: c.place)))
    figure = Figure(figsize=(13, 2.3 * len(streams) + 0.8), layout="constrained")
    axes = figure.subplots(len(streams), len(SETTINGS), squeeze=False)
    for (row, stream), (column, setting) in ((r, s) for r in enumerate(streams) for s in enumerate(SETTINGS)):
        axis = axes[row, column]
        cells = [c for c in shown if (c.stream, c.setting) == (stream, setting)]
        if not cells:
            axis.set_axis_off()
            continue
        axis.axhline(0, color="black", linewidth=0.7)
        for cell in sorted(cells, key=lambda c: c.place):
            _curve(axis, cell.method, shown[cell])
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, LOWEST), min(high, HIGHEST))
        axis.set_title(f"{stream}: {SETTINGS[setting]}", fontsize=9)
        axis.set_ylabel("points over no method" if column == 0 else "", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("images of the stream seen", fontsize=8)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines if line.get_label() in METHODS}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=6, fontsize=8)
    save_figure(figure, path, dpi=80)


def _curve(axis: Axes, method: str, runs: Runs) -> None:
    gains = np.stack([np.cumsum(s.final.astype(float) - s.bare) for s in runs.values()])
    seen = np.arange(1, gains.shape[1] + 1)
    start = len(seen) // 20  # the first images swing too widely to be drawn
    lines = (POINTS * gains / seen)[:, start:]
    axis.plot(seen[start:], lines.mean(0), color=COLOURS[method], label=method, linewidth=1.3)
    axis.fill_between(seen[start:], lines.min(0), lines.max(0), color=COLOURS[method], alpha=0.12, linewidth=0)
