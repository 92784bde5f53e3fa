"""Tables in four forms: terminal, markdown, LaTeX booktabs, CSV. The first three print percent; CSV keeps fractions of 1.

In CSV all tables are one, a line a comparison or a pair of methods: the column `table` says of which table a line is, and what a table has
no word on is empty.
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
    """Rows of raw values by name, and what each printed column makes of a row.

    `family` says over which comparisons p is corrected. `lines` are the rows of CSV where they are not those that are printed.
    """

    title: str
    kind: str
    columns: Mapping[str, Callable[[Mapping], str]]
    rows: Sequence[Mapping]
    family: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    lines: Sequence[Mapping] | None = None

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
    rows = [place(block) | entry_values(entry) | {"tests": block.tests} for entry in block.entries]
    return Table(block.name, "methods", columns, rows, block_family(block, baseline), block.notes)


def place(block: Block) -> dict:
    """What every line of a block says in CSV."""
    return {"data": block.first.dataset, "split": block.split, "task": block.task}


def block_family(block: Block, baseline: str) -> str:
    """Over which comparisons the p-values of a block are corrected."""
    methods = f"the {block.tests} {block.task} methods on {block.first.dataset} ({block.split})"
    return f"p (Holm): corrected over one family, {methods} that differ from {baseline} on some image, shown or not"


def entry_values(entry: Entry) -> dict:
    """The raw values of an entry."""
    names = ("difference", "low", "high", "p_value", "rescued", "lost")
    compared = asdict(entry.comparison) if entry.comparison else dict.fromkeys(names)
    own = {name: getattr(entry, name) for name in ("accuracy", "spread", "encoder_calls", "seconds", "p_holm", "on_front")}
    return {"method": entry.label, "runs": len(entry.records), **own, **compared, "record": str(entry.records[0].folder)}


def parts_table(block: Block, method: str, kind: str, parts: Sequence[Part], baseline: str) -> Table:
    """The comparison of a method class by class or domain by domain."""
    columns = {
        kind: lambda r: r["name"],
        "images": lambda r: str(r["images"]),
        "top-1 %": lambda r: f"{100 * r['accuracy']:.1f}",
        f"{baseline} %": lambda r: f"{100 * r['baseline']:.1f}",
        "difference [95 %]": interval,
        "p (Holm)": lambda r: probability(r["p_holm"]),
    }
    own, tests = ("name", "images", "accuracy", "baseline", "p_holm"), sum(part.p_holm is not None for part in parts)
    said = place(block) | {"method": method, "tests": tests}
    rows = [said | {n: getattr(p, n) for n in own} | asdict(p.comparison) for p in parts]
    family = f"p (Holm): corrected over one family, the {tests} parts by {kind} in which this method differs from {baseline} on some image"
    return Table(f"{method}, by {kind}", kind, columns, rows, family)


def matrix_table(block: Block, kind: str, title: str, values: np.ndarray, show: Callable[[float], str]) -> Table:
    """A square of numbers, methods by methods; columns are numbered as the rows are."""
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
        text = io.StringIO()
        console = Console(file=text, width=width)
        for table in tables:
            _print(console, table)
        return text.getvalue()
    if form == "csv":
        return _csv(tables)
    return "\n".join({"markdown": _markdown, "latex": _latex}[form](table) for table in tables)


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
