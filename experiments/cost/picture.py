"""The picture of experiments/cost: accuracy against forward passes, with the Pareto front of each data set."""

from collections.abc import Sequence
from pathlib import Path

from experiments.study import RANGES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from multicrop.files import save_figure

Points = dict[tuple[str, int], tuple[float, float]]  # cost and accuracy of each way and number of crops

STYLES = {  # way: label, colour, marker
    "random": ("random crops", "#3d6fb6", "o"),
    "quasi_random": ("quasi-random crops", "#2a7f62", "s"),
    "diverse": ("diverse crops", "#d08a2e", "^"),
    "random, 80 px": ("random at 80 px", "#e3a0b4", "v"),
    "random, 64 px": ("random at 64 px", "#c9567b", "v"),
    "random, 48 px": ("random at 48 px", "#8e1f46", "v"),
}
CASCADE = "#6b4fa0"


def draw(lines: Sequence[Sequence[object]], header: Sequence[str], path: Path) -> None:
    """One panel per data set: the mean over its vendors of each way of looking.

    Args:
        lines: The rows of results.csv.
        header: Their columns.
        path: The file to write.
    """
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    names = list(dict.fromkeys(str(row["data"]) for row in rows))
    figure = Figure(figsize=(5.4 * len(names), 4.8), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        here = [row for row in rows if row["data"] == name]
        _panel(axis, _means(here))
        vendors = dict.fromkeys(RANGES.get(str(row["vendor"]), str(row["vendor"])) for row in here)
        axis.set_title(f"{name}, mean over the vendors: {', '.join(vendors)}", fontsize=10)
    handles = {line.get_label(): line for axis in figure.axes for line in axis.lines if not str(line.get_label()).startswith("_")}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    save_figure(figure, path, dpi=130)


def _means(rows: Sequence[dict]) -> Points:
    """Mean cost and accuracy of each way of looking over the vendors."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["crops"]), []).append((float(row["cost"]), float(row["top1"])))
    return {key: (sum(c for c, _ in own) / len(own), sum(t for _, t in own) / len(own)) for key, own in groups.items()}


def _panel(axis: Axes, means: Points) -> None:
    front = _front(means)
    axis.step(
        *zip(*front, strict=True), where="post", color="#bbbbbb", linewidth=3.5, solid_joinstyle="round", label="Pareto front", zorder=1
    )
    for way, (label, colour, marker) in STYLES.items():
        if points := sorted(point for (own, _), point in means.items() if own == way):
            axis.plot(*zip(*points, strict=True), marker=marker, markersize=4.5, linewidth=1, color=colour, label=label)
    _cascades(axis, means)
    axis.plot(*means["global view", 0], marker="D", markersize=6, linestyle="", color="#222222", label="global view alone")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator([1, 2, 4, 8, 16, 32]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("cost per image, forward passes of a whole view")
    axis.set_ylabel("top-1, %")
    axis.grid(alpha=0.25)


def _cascades(axis: Axes, means: Points) -> None:
    """The cascades of one number of crops joined by their share; a star where validation chose the threshold."""
    shares = {key: point for key, point in means.items() if key[0].startswith("cascade") and key[0] != "cascade, chosen"}
    for crops in sorted({crops for _, crops in shares}):
        points = sorted(point for (_, own), point in shares.items() if own == crops)
        axis.plot(*zip(*points, strict=True), marker=".", markersize=6, linestyle=":", linewidth=1, color=CASCADE, label="cascade")
    chosen = [point for (way, _), point in means.items() if way == "cascade, chosen"]
    if chosen:
        axis.plot(*zip(*chosen, strict=True), marker="*", markersize=9, linestyle="", color=CASCADE, label="cascade, chosen threshold")


def _front(means: Points) -> list[tuple[float, float]]:
    """The points that no other beats: cheaper or as cheap, and more accurate."""
    best, kept = -1.0, []
    for cost, top in sorted(means.values(), key=lambda point: (point[0], -point[1])):
        if top > best:
            kept.append((cost, top))
            best = top
    return kept
