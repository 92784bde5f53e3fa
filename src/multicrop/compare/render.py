"""Tables in four formats: terminal, markdown, LaTeX booktabs, CSV. The first three print percent; CSV has fractions of 1.

In CSV all tables are one, with one line per comparison or pair of methods; the column `table` names the line's table, and missing fields
are empty.
"""

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from multicrop.compare.tables import Table

LEAST = 12  # characters of the first column, in which its names wrap
FORMATS = {"terminal": ".txt", "markdown": ".md", "latex": ".tex", "csv": ".csv"}
NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {c: rf"\text{name}{{}}" for c, name in NAMED.items()}


def format_of(file: Path) -> str:
    """The format of a file by its suffix.

    Raises:
        ValueError: If no format has this suffix.
    """
    for form, suffix in FORMATS.items():
        if file.suffix == suffix:
            return form
    raise ValueError(f"-o {file} names no format; end it in {', '.join(FORMATS.values())}, or pass --format. multicrop report makes HTML")


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
    heads, widths = [], []
    for name, *cells in zip(table.columns, *table.cells(), strict=True):
        heads.append(_folded(name, max(map(len, cells), default=0)))
        widths.append(max(map(len, [*heads[-1].split("\n"), *cells])) + 2)
    whole = sum(widths[1:]) + LEAST <= console.width  # numbers stay on one line, and names wrap
    for i, head in enumerate(heads):
        shown.add_column(escape(head), justify="right" if i else "left", overflow="fold", no_wrap=bool(i) and whole)
    for first, *others in table.cells():
        shown.add_row(escape(first), *(escape(cell.replace(" ", "\N{NO-BREAK SPACE}")) for cell in others))
    console.print(shown)
    if table.family:
        console.print(escape(table.family), soft_wrap=True)
    for note in table.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)


def _folded(heading: str, width: int) -> str:
    """A heading in lines of at most this width, or of its longest word."""
    return textwrap.fill(heading, max(width, *map(len, heading.split()), 1), break_long_words=False, break_on_hyphens=False)


def _markdown(table: Table) -> str:
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)], *table.cells()]
    body = "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)
    return f"**{table.title}**\n\n{body}\n" + "".join(f"\n> {note}\n" for note in (table.family, *table.notes) if note)


def _markdown_cell(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


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
