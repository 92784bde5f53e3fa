"""One table, four forms: terminal, markdown, LaTeX booktabs, CSV. The first three print percent; CSV keeps fractions."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from multicrop.comparison.details import Part
from multicrop.comparison.leaderboard import Block, Entry

FORMATS = {"terminal": ".txt", "markdown": ".md", "latex": ".tex", "csv": ".csv"}
LATEX = {"\\": r"\textbackslash{}", **{c: f"\\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class Table:
    """Rows of raw values by name, and what each printed column makes of a row."""

    title: str
    columns: Mapping[str, Callable[[Mapping], str]]
    rows: Sequence[Mapping]
    notes: Sequence[str] = field(default_factory=tuple)

    def cells(self) -> list[list[str]]:
        """The printed table without its head."""
        return [[show(row) for show in self.columns.values()] for row in self.rows]


def leaderboard_table(block: Block, baseline: str) -> Table:
    """The methods of a block against the baseline; a star marks the accuracy-cost front."""
    several = any(len(entry.records) > 1 for entry in block.entries)
    columns = {
        "method": lambda r: r["method"],
        **({"runs": lambda r: str(r["runs"])} if several else {}),
        "top-1 %": lambda r: f"{100 * r['accuracy']:.1f}" + (f" ± {100 * r['spread']:.1f}" if r["runs"] > 1 else ""),
        f"vs {baseline} [95 %]": interval,
        "p (Holm)": lambda r: probability(r["p_holm"]),
        "rescued / lost": lambda r: "" if r["rescued"] is None else f"{r['rescued']}/{r['lost']}",
        "views": lambda r: f"{r['encoder_calls']}{' *' if r['on_front'] else '  '}",
    }
    return Table(block.name, columns, [entry_values(entry) for entry in block.entries], block.notes)


def entry_values(entry: Entry) -> dict:
    """The raw values of an entry."""
    names = ("difference", "low", "high", "p_value", "rescued", "lost")
    compared = asdict(entry.comparison) if entry.comparison else dict.fromkeys(names)
    own = {name: getattr(entry, name) for name in ("accuracy", "spread", "encoder_calls", "seconds", "p_holm", "on_front")}
    return {"method": entry.label, "runs": len(entry.records), **own, **compared, "record": str(entry.records[0].folder)}


def parts_table(title: str, kind: str, parts: Sequence[Part], baseline: str) -> Table:
    """The comparison class by class or domain by domain."""
    columns = {
        kind: lambda r: r["name"],
        "images": lambda r: str(r["images"]),
        "top-1 %": lambda r: f"{100 * r['accuracy']:.1f}",
        f"{baseline} %": lambda r: f"{100 * r['baseline']:.1f}",
        "difference [95 %]": interval,
        "p (Holm)": lambda r: probability(r["p_holm"]),
    }
    own = ("name", "images", "accuracy", "baseline", "p_holm")
    return Table(title, columns, [{**{n: getattr(p, n) for n in own}, **asdict(p.comparison)} for p in parts])


def matrix_table(title: str, names: Sequence[str], values: np.ndarray, show: Callable[[float], str]) -> Table:
    """A square of numbers; columns are numbered as the rows are."""
    columns = {"": lambda r: f"{r['number']} {r['method']}"}
    for i in range(len(names)):
        columns[str(i + 1)] = lambda r, i=i: show(r[str(i + 1)])
    rows = [
        {"number": n + 1, "method": name, **{str(i + 1): v for i, v in enumerate(line.tolist())}}
        for n, (name, line) in enumerate(zip(names, values, strict=True))
    ]
    return Table(title, columns, rows)


def interval(row: Mapping) -> str:
    """`+3.1 [+1.0, +5.2]` in percent; empty where there is no comparison."""
    return "" if row["difference"] is None else f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def probability(value: float | None) -> str:
    """A p-value in three places, or that it is smaller."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def render(tables: Sequence[Table], form: str, *, width: int = 120) -> str:
    """The tables as text; raises ValueError for an unknown format."""
    if form not in FORMATS:
        raise ValueError(f"--format is one of {', '.join(FORMATS)}, got {form!r}")
    if form == "terminal":
        console = Console(file=io.StringIO(), width=width)
        for table in tables:
            _print(console, table)
        return console.file.getvalue()
    return "\n".join({"markdown": _markdown, "latex": _latex, "csv": _csv}[form](table) for table in tables)


def show(console: Console, tables: Sequence[Table]) -> None:
    """The tables on a terminal."""
    for table in tables:
        _print(console, table)


def _print(console: Console, table: Table) -> None:
    shown = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, name in enumerate(table.columns):
        shown.add_column(escape(name), justify="right" if i else "left", overflow="fold")
    for first, *others in table.cells():
        shown.add_row(escape(first), *(escape(cell.replace(" ", "\N{NO-BREAK SPACE}")) for cell in others))
    console.print(shown)
    for note in table.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)


def _markdown(table: Table) -> str:
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)], *table.cells()]
    plain = [[cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in line] for line in lines]
    body = "\n".join("| " + " | ".join(line) + " |" for line in plain)
    return f"**{table.title}**\n\n{body}\n" + "".join(f"\n> {note}\n" for note in table.notes)


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in cell).replace("±", r"$\pm$") for cell in cells) + r" \\"

    rules = [r"\toprule", line(list(table.columns)), r"\midrule", *map(line, table.cells()), r"\bottomrule"]
    head = [f"% {table.title} (needs \\usepackage{{booktabs}})", *(f"% {note}" for note in table.notes)]
    return "\n".join([*head, rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", *rules, r"\end{tabular}", ""])


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=["table", *table.rows[0]] if table.rows else ["table"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"table": table.title, **row} for row in table.rows)
    return text.getvalue()
