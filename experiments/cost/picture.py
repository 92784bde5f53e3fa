"""The picture of experiments/cost: accuracy against forward passes, with the Pareto front of each data set."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from multicrop.files import save_figure

COLOURS = {
    "global view": "#222222",
    "random": "#3d6fb6",
    "quasi_random": "#2a7f62",
    "diverse": "#d08a2e",
    "smaller crops": "#b3365b",
    "cascade": "#6b4fa0",
}


def draw(lines: Sequence[Sequence[object]], header: Sequence[str], path: Path) -> None:
    """One panel per data set: the mean over its vendors of each way of looking.

    Args:
        lines: The rows of results.csv.
        header: Their columns.
        path: The file to write.
    """
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    names = list(dict.fromkeys(str(row["data"]) for row in rows))
    figure = Figure(figsize=(6.2 * len(names), 4.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        here = [row for row in rows if row["data"] == name]
        _panel(axis, _means(here))
        vendors = list(dict.fromkeys(str(row["vendor"]) for row in here))
        axis.set_title(f"{name}: mean over {', '.join(vendors)}", fontsize=10)
    handles = {line.get_label(): line for axis in figure.axes for line in axis.lines if not str(line.get_label()).startswith("_")}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    save_figure(figure, path, dpi=120)


def _means(rows: Sequence[dict]) -> dict[tuple[str, int], tuple[float, float]]:
    """Mean cost and accuracy of each way of looking over the vendors."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        groups.setdefault((row["way"], row["crops"]), []).append((float(row["cost"]), float(row["top1"])))
    return {key: (sum(c for c, _ in own) / len(own), sum(t for _, t in own) / len(own)) for key, own in groups.items()}


def _kind(way: str) -> str:
    return "cascade" if way.startswith("cascade") else "smaller crops" if way.endswith(" px") else way


def _panel(axis: Axes, means: dict[tuple[str, int], tuple[float, float]]) -> None:
    for kind, colour in COLOURS.items():
        joined = kind not in ("cascade", "smaller crops")
        for way in dict.fromkeys(way for way, _ in means if _kind(way) == kind):
            points = sorted(point for (own, _), point in means.items() if own == way)
            axis.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=4,
                linestyle="-" if joined else ":",
                linewidth=1,
                color=colour,
                label=kind,
            )
    best, steps = -1.0, []
    for cost, top in sorted(means.values(), key=lambda point: (point[0], -point[1])):
        if top > best:
            steps.append((cost, top))
            best = top
    axis.step(*zip(*steps, strict=True), where="post", color="black", linewidth=0.8, linestyle="--", label="Pareto front")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("forward passes of a whole view, per image")
    axis.set_ylabel("top-1, %")
    axis.grid(alpha=0.3)
