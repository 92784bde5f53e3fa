"""Tables in four formats: terminal, markdown, LaTeX booktabs, CSV. The first three print percent; CSV has fractions of 1.

In CSV all tables are one, with one line per comparison or pair of methods; the column `table` names the line's table, and missing fields
are empty.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from multicrop.compare.details import Part
from multicrop.compare.leaderboard import Block, Entry

FORMATS = {"terminal": ".txt", "markdown": ".md", "latex": ".tex", "csv": ".csv"}
NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {c: rf"\text{name}{{}}" for c, name in NAMED.items()}


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
    several = any(len(entry.runs) > 1 for entry in block.entries)
    columns = {
        "method": lambda r: r["method"],
        **({"runs": lambda r: str(r["runs"])} if several else {}),
        "top-1 %": lambda r: f"{100 * r['accuracy']:.1f}" + (f" ± {100 * r['spread']:.1f}" if r["runs"] > 1 else ""),
        f"vs {baseline} [95 %]": interval,
        "p (Holm)": lambda r: probability(r["p_holm"]),
        "rescued / lost": lambda r: "" if r["rescued"] is None else f"{r['rescued']}/{r['lost']}",
        "views": lambda r: f"{r['encoder_calls']}{' *' if r['on_front'] else '  '}",
    }
    rows = [place(block) | entry_values(entry) | {"tests": block.tests} for entry in block.entries]
    return Table(block.name, "methods", columns, rows, block_family(block, baseline), block.notes)


def place(block: Block) -> dict:
    """The values of a block that every line of it has in CSV."""
    return {"data": block.first.dataset, "split": block.split, "task": block.task}


def block_family(block: Block, baseline: str) -> str:
    """The note that says which comparisons the p-values of a block are corrected over."""
    methods = f"the {block.tests} {block.task} methods on {block.first.dataset} ({block.split})"
    return f"p (Holm): corrected over one family, {methods} that differ from {baseline} on some image, shown or not"


def entry_values(entry: Entry) -> dict:
    """The raw values of an entry."""
    names = ("difference", "low", "high", "p_value", "rescued", "lost")
    compared = asdict(entry.comparison) if entry.comparison else dict.fromkeys(names)
    own = {name: getattr(entry, name) for name in ("accuracy", "spread", "encoder_calls", "seconds", "p_holm", "on_front")}
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
    own, tests = ("name", "images", "accuracy", "baseline", "p_holm"), sum(part.p_holm is not None for part in parts)
    shared = place(block) | {"method": method, "tests": tests}
    rows = [shared | {n: getattr(p, n) for n in own} | asdict(p.comparison) for p in parts]
    family = f"p (Holm): corrected over one family, the {tests} parts by {kind} in which this method differs from {baseline} on some image"
    return Table(f"{method}, by {kind}", kind, columns, rows, family)


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


def interval(row: Mapping) -> str:
    """`+3.1 [+1.0, +5.2]` in percent points; empty without a comparison."""
    return "" if row["difference"] is None else f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def probability(value: float | None) -> str:
    """A p-value with three decimals, or `<0.001`."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def render(tables: Sequence[Table], form: str, *, width: int = 120) -> str:
    """Format tables as text.

    Args:
        tables: The tables.
        form: ``terminal``, ``markdown``, ``latex`` or ``csv``.
        width: Characters per line of the terminal format.

    Returns:
        The text.

    Raises:
        ValueError: If the format is unknown.
    """
    if form not in FORMATS:
        raise ValueError(f"--format is one of {', '.join(FORMATS)}, got {form!r}")
    if form == "terminal":
        text = io.StringIO()
        console = Console(file=text, width=width)
        for table in tables:
            _print(console, table)
        return text.getvalue()
    if form == "csv":
        return _csv(tables)
    return "\n".join({"markdown": _markdown, "latex": _latex}[form](table) for table in tables)


def show(console: Console, tables: Sequence[Table]) -> None:
    """Print the tables to a terminal."""
    for table in tables:
        _print(console, table)


def _print(console: Console, table: Table) -> None:
    shown = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, name in enumerate(table.columns):
        shown.add_column(escape(name), justify="right" if i else "left", overflow="fold")
    for first, *others in table.cells():
        shown.add_row(escape(first), *(escape(cell.replace(" ", "\N{NO-BREAK SPACE}")) for cell in others))
    console.print(shown)
    for line in (*([table.family] if table.family else []), *(f"note: {note}" for note in table.notes)):
        console.print(escape(line), soft_wrap=True)


def _markdown(table: Table) -> str:
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)], *table.cells()]
    plain = [[cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in line] for line in lines]
    body = "\n".join("| " + " | ".join(line) + " |" for line in plain)
    return f"**{table.title}**\n\n{body}\n" + "".join(f"\n> {note}\n" for note in (table.family, *table.notes) if note)


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_escaped, cells)) + r" \\"

    rules = [r"\toprule", line(list(table.columns)), r"\midrule", *map(line, table.cells()), r"\bottomrule"]
    head = [f"% {table.title} (needs \\usepackage{{booktabs}})", *(f"% {note}" for note in table.notes)]
    below = [rf"\par\smallskip{{\footnotesize {_escaped(table.family)}.\par}}"] if table.family else []
    return "\n".join([*head, rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", *rules, r"\end{tabular}", *below, ""])


def _escaped(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in text).replace("±", r"$\pm$")


def _csv(tables: Sequence[Table]) -> str:
    lines = [{"table": table.kind, **line} for table in tables for line in (table.rows if table.lines is None else table.lines)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
