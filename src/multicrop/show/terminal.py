"""Output of a run on the terminal: table, cost, paths. Takes plain values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from multicrop.compare.published import Figure
from multicrop.compare.small_samples import remarks
from multicrop.compare.tables import interval
from multicrop.record import BESIDE

console = Console()


def row_labels(choices: Mapping[str, str], component: str | None, n_views: int, beside: Sequence[str] = ()) -> dict[str, str]:
    """The label of each row in the table of a run.

    Args:
        choices: Option per config group.
        component: Config group that the task adds to the aggregator (``adapter``, ``method``), or None.
        n_views: Views per image.
        beside: Names of further aggregators.

    Returns:
        Labels by row name; without ``component`` there is no row ``final``.
    """
    crops = {1: "no crops: the global view", 2: "1 crop"}.get(n_views, f"{n_views - 1} crops averaged")
    labels = {"global": "global view", "crops_mean": crops, "aggregated": choices.get("aggregator", "aggregator")}
    labels |= {BESIDE + name: name for name in beside}
    return labels | ({"final": f"{labels['aggregated']} + {choices.get(component, component)}"} if component else {})


def results_table(
    title: str, rows: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str], seconds: Mapping[str, float], images: int
) -> Table:
    """The table of a run: per row accuracy, difference from the global view with 95 % interval, rescued and lost images, seconds."""
    clusters = rows["final"].get("clusters")
    below = [f"95 % interval over {clusters} clusters of images that share their content"] if clusters else []
    caption = "\n".join([*below, *remarks(images, clusters)]) or None
    table = Table(title=escape(title), title_justify="left", caption=caption, caption_justify="left")
    for column in ("", "top-1", r"vs global \[95 %]", "rescued/lost", "seconds"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for row, label in labels.items():
        values = rows[row]
        compared = ("", "") if row == "global" else (escape(interval(values)), f"{values['rescued']}/{values['lost']}")
        table.add_row(escape(label), f"{100 * values['accuracy']:.1f}", *compared, f"{seconds[row]:.2f}")
    return table


def show_run(
    title: str, labels: Mapping[str, str], metrics: Mapping[str, Any], facts: Mapping[str, Any], record: Path, picture: Path | None
) -> None:
    """Print the table of a run, its cost, and where its record and picture are."""
    console.print(results_table(title, metrics["rows"], labels, metrics["row_seconds"], metrics["images"]))
    how = "bank reused, filled at" if metrics["bank_reused"] else "bank filled at"
    console.print(
        f"{metrics['encoder_calls']:,} views, {how} {metrics['crops_per_second']:,.0f} crops per second "
        f"({metrics['encode_seconds']:.1f} s); scoring {metrics['scoring_seconds']:.1f} s; "
        f"total {facts['seconds']:.1f} s, peak memory {facts['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    if ood := metrics.get("ood"):
        detected = ", ".join(f"{100 * metrics['trust'][row]['auroc_mcm']:.1f} by {label}" for row, label in labels.items())
        console.print(f"unknown classes ({ood['images']:,} images of {ood['name']}), AUROC of maximum concept matching: {detected}")
    console.print(f"record: {record}", soft_wrap=True, markup=False)
    if picture:
        console.print(f"picture: {picture}", soft_wrap=True, markup=False)


def show_published(figures: Sequence[Figure]) -> None:
    """Print the published numbers for the setting of a run."""
    for figure in figures:
        console.print(str(figure), soft_wrap=True, markup=False)


def show_lines(lines: Sequence[str]) -> None:
    """Print lines as they are."""
    if lines:
        console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def show_encoded(name: str, images: int, views: int, crops_per_second: float | None) -> None:
    """Print that a feature bank is complete; ``crops_per_second`` is None if it was found in the cache."""
    how = "found in the cache" if crops_per_second is None else f"encoded at {crops_per_second:,.0f} crops per second"
    console.print(f"{name}: {images:,} images x {views} views {how}", soft_wrap=True, markup=False)


def show_skipped(record: Path) -> None:
    """Print that a sweep job was skipped because its run is finished."""
    console.print(f"already done, skipped (rerun=true runs it again): {record}", soft_wrap=True, markup=False)
