"""`multicrop compare RUNS...`: finished runs against a baseline, paired image by image."""

import argparse
from pathlib import Path

HELP = "compare finished runs with a baseline, image by image"
TOP = 20  # methods in a table for people


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    from multicrop.compare.command import add_runs
    from multicrop.compare.tables import FORMATS

    parser = commands.add_parser("compare", help=HELP, description=__doc__)
    add_runs(parser)
    parser.add_argument("--by", choices=("class", "domain"), help="also the differences class by class or domain by domain")
    parser.add_argument("--matrix", action="store_true", help="also on how many images two methods agree, and which rescues which")
    parser.add_argument("--top", type=int, help="how many methods to show (0: all); by default 20, and all as CSV")
    parser.add_argument("--format", choices=tuple(FORMATS), help="how to print; the default follows the ending of -o")
    parser.add_argument("-o", "--output", type=Path, help="write to this file instead of the terminal")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, compare, print; records that cannot be used are named on standard error."""
    from multicrop.compare import command, tables

    _, found = command.read_runs(options)
    baseline = options.baseline if command.is_row(options) else "baseline"
    form = options.format or next((f for f, end in tables.FORMATS.items() if options.output and options.output.suffix == end), "terminal")
    if options.top is None:
        options.top = 0 if form == "csv" else TOP
    shown = [table for block in found for table in _tables(block, options, baseline)]
    if options.output:
        options.output.write_text(tables.render(shown, form), encoding="utf-8")
        print(f"written: {options.output}")
    elif form == "terminal":
        from rich.console import Console

        tables.show(Console(), shown)
    else:
        print(tables.render(shown, form), end="")
    command.write_figures(found, options)
    return 0


def _tables(block: object, options: argparse.Namespace, baseline: str) -> list:
    """The leaderboard of a block and what was asked for beside it."""
    from dataclasses import replace

    from multicrop.compare import details, tables

    shown = replace(block, entries=block.entries[: options.top or None])
    hidden = len(block.entries) - len(shown.entries)
    notes = (*block.notes, *((f"{hidden} more methods; --top 0 shows all",) if hidden else ()))
    made = [tables.leaderboard_table(replace(shown, notes=notes), baseline)]
    if options.by:
        parts_of = {"class": details.by_class, "domain": details.by_domain}[options.by]
        made += [tables.parts_table(block, e.label, options.by, parts_of(e), baseline) for e in shown.entries if e.comparison]
    if options.matrix:
        alike, rescues = details.agreement(shown.entries), details.rescues(shown.entries)
        title = "share of images with the same prediction, %"
        made.append(tables.matrix_table(shown, "agreement", title, alike, lambda v: f"{100 * v:.0f}"))
        made.append(tables.matrix_table(shown, "rescues", "images the row gets right and the column wrong", rescues, str))
    return made
