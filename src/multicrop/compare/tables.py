"""The tables of a comparison: leaderboard, parts (classes or domains), and matrices over pairs of methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from multicrop.compare.details import Part
from multicrop.compare.leaderboard import Block, Entry
from multicrop.compare.small_samples import FEW_IMAGES
from multicrop.compare.statistics import Comparison


@dataclass(frozen=True)
class Table:
    """A table as raw values, with a function per printed column that formats a row.

    Args:
        title: Title above the table.
        kind: Value of the column ``table`` in CSV.
        columns: Formatting function per column, by heading.
        rows: Raw values by name.
        family: Which comparisons the p-values are corrected over.
        notes: Lines below the table.
        lines: Rows of CSV; None if they are ``rows``.
    """

    title: str
    kind: str
    columns: Mapping[str, Callable[[Mapping], str]]
    rows: Sequence[Mapping]
    family: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    lines: Sequence[Mapping] | None = None

    def cells(self) -> list[list[str]]:
        """The formatted cells, without the headings."""
        return [[show(row) for show in self.columns.values()] for row in self.rows]


def leaderboard_table(block: Block, baseline: str) -> Table:
    """The table of a block: its methods compared with the baseline; a star marks the accuracy-cost front.

    Args:
        block: The block.
        baseline: Name of the baseline in headings.

    Returns:
        The table.
    """
    columns: dict[str, Callable[[Mapping], str]] = {
        "method": _method_and_runs if any(len(entry.runs) > 1 for entry in block.entries) else lambda r: r["method"],
        "top-1 %": lambda r: f"{100 * r['accuracy']:.1f}" + (f" ± {100 * r['spread']:.1f}" if r["runs"] > 1 else ""),
    }
    if any(entry.top5 is not None for entry in block.entries):
        columns["top-5 %"] = lambda r: "" if r["top5"] is None else f"{100 * r['top5']:.1f}"
    columns |= {
        f"vs {baseline} [95 %]": interval,
        "p (Holm)": lambda r: probability(r["p_holm"]),
        "rescued / lost": lambda r: "" if r["rescued"] is None else f"{r['rescued']}/{r['lost']}",
        "views": lambda r: f"{r['encoder_calls']}{' *' if r['on_front'] else '  '}",
    }
    if any(run.imported for entry in block.entries for run in entry.runs):
        columns["run by"] = lambda r: r["run_by"]
    rows = [place(block) | entry_values(entry) | {"tests": block.tests, "run_by": _run_by(entry)} for entry in block.entries]
    return Table(block.name, "methods", columns, rows, block_family(block, baseline), block.notes)


def _method_and_runs(row: Mapping) -> str:
    """The name of a method with the number of its runs."""
    return f"{row['method']} ({row['runs']} run{'s' if row['runs'] > 1 else ''})"


def _run_by(entry: Entry) -> str:
    """Who ran a method on which revision: `alice, 1a2b3c4`."""
    return "; ".join(dict.fromkeys(run.origin for run in entry.runs))


def place(block: Block) -> dict:
    """The values of a block that every line of it has in CSV."""
    return {"data": block.first.dataset, "split": block.split, "task": block.task}


def block_family(block: Block, baseline: str) -> str:
    """The note that says which comparisons the p-values of a block are corrected over."""
    methods = f"the {block.tests} {block.task} methods on {block.first.dataset} ({block.split})"
    family = f"p (Holm): corrected over one family, {methods} that differ from {baseline} on some image, shown or not"
    return over_clusters([entry.comparison for entry in block.entries if entry.comparison]) + family


def over_clusters(compared: Sequence[Comparison]) -> str:
    """`95 % interval over 40 clusters, p by exact sign-flip test over clusters; `: empty where no comparison is over clusters."""
    counts = sorted({one.clusters for one in compared if one.clusters})
    if not counts:
        return ""
    tests = ", ".join(dict.fromkeys(one.test for one in compared if one.clusters))
    more = f" (over images in {alone} of {len(compared)})" if (alone := sum(one.clusters is None for one in compared)) else ""
    return f"95 % interval over {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} clusters{more}, p by {tests}; "


def entry_values(entry: Entry) -> dict:
    """The raw values of an entry."""
    names = ("difference", "low", "high", "p_value", "rescued", "lost", "clusters", "test")
    compared = asdict(entry.comparison) if entry.comparison else dict.fromkeys(names)
    own = {name: getattr(entry, name) for name in ("accuracy", "top5", "spread", "encoder_calls", "seconds", "p_holm", "on_front")}
    return {"method": entry.label, "runs": len(entry.runs), **own, **compared, "record": str(entry.runs[0].folder)}


def parts_table(block: Block, method: str, kind: str, parts: Sequence[Part], baseline: str) -> Table:
    """The table of a method's comparison per class or per domain.

    Args:
        block: Block of the method.
        method: Label of the method.
        kind: ``class`` or ``domain``.
        parts: What ``by_class`` or ``by_domain`` returned.
        baseline: Name of the baseline in headings.

    Returns:
        The table.
    """
    columns = {
        kind: lambda r: r["name"],
        "images": lambda r: str(r["images"]),
        "top-1 %": lambda r: f"{100 * r['accuracy']:.1f}",
        f"{baseline} %": lambda r: f"{100 * r['baseline']:.1f}",
        "difference [95 %]": interval,
        "p (Holm)": lambda r: probability(r["p_holm"]),
    }
    tests = sum(part.p_holm is not None for part in parts)
    shared = place(block) | {"method": method, "tests": tests}
    own = ("name", "images", "accuracy", "baseline", "p_holm")
    rows = [shared | {name: getattr(part, name) for name in own} | asdict(part.comparison) for part in parts]
    family = f"p (Holm): corrected over one family, the {tests} parts by {kind} in which this method differs from {baseline} on some image"
    if any(part.images < FEW_IMAGES for part in parts):
        family += f"; intervals of parts with fewer than {FEW_IMAGES} images are exact"
    return Table(f"{method}, by {kind}", kind, columns, rows, over_clusters([part.comparison for part in parts]) + family)


def matrix_table(block: Block, kind: str, title: str, values: np.ndarray, show: Callable[[float], str]) -> Table:
    """The table of a matrix over pairs of methods, with numbered rows and columns.

    Args:
        block: Block of the methods.
        kind: Name of the value in CSV.
        title: Title of the table.
        values: Matrix, shape (methods, methods).
        show: Formats a value.

    Returns:
        The table.
    """
    names = [entry.label for entry in block.entries]
    columns = {"": lambda r: f"{r['number']} {r['method']}"}
    for i in range(len(names)):
        columns[str(i + 1)] = lambda r, i=i: show(r["values"][i])
    squares = list(zip(names, values.tolist(), strict=True))
    rows = [{"number": number, "method": name, "values": line} for number, (name, line) in enumerate(squares, 1)]
    pairs = [(name, other, value) for name, line in squares for other, value in zip(names, line, strict=True)]
    lines = [place(block) | {"method": name, "other": other, kind: value} for name, other, value in pairs]
    return Table(title, kind, columns, rows, lines=lines)


def bracketed(value: float, low: float, high: float, *, sign: bool = True) -> str:
    """`+3.1 [+1.0, +5.2]`: a value and its interval, in points of percent; without `sign` `3.1 [1.0, 5.2]`."""
    form = "{:+.1f} [{:+.1f}, {:+.1f}]" if sign else "{:.1f} [{:.1f}, {:.1f}]"
    return form.format(value, low, high)


def interval(row: Mapping) -> str:
    """The difference of a row with its interval; empty without a comparison."""
    return "" if row["difference"] is None else bracketed(*(100 * row[end] for end in ("difference", "low", "high")))


def probability(value: float | None) -> str:
    """A p-value with three decimals, or `<0.001`."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
