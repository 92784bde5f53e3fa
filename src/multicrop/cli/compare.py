"""`multicrop compare RUNS...`: compare finished runs with a baseline, paired per image."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multicrop.compare.leaderboard import Block
    from multicrop.compare.tables import Table

HELP = "compare finished runs with a baseline, paired per image"
TOP = 20  # methods in a table, except in CSV


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    from multicrop.compare.command import add_runs
    from multicrop.compare.render import FORMATS

    parser = add_parser("compare", help=HELP, description=__doc__)
    add_runs(parser)
    parser.add_argument("--by", choices=("class", "domain"), help="add a table per method with the difference per class or per domain")
    parser.add_argument(
        "--matrix",
        action="store_true",
        help="add two tables over pairs of methods: agreement, and images that only one classifies correctly",
    )
    parser.add_argument(
        "--trust", action="store_true", help="add a table of calibration, selective accuracy, unknown classes and stability over crop seeds"
    )
    parser.add_argument("--published", action="store_true", help="add a table of published numbers of the same settings beside these runs")
    parser.add_argument(
        "--protocol", help="instead, the tables of a protocol of few-shot papers: base_to_new, all_shots, cross_dataset, ..."
    )
    parser.add_argument("--top", type=int, help="number of methods to show (0: all; default: 20, in CSV all)")
    parser.add_argument("--format", choices=tuple(FORMATS), help="output format (default: by the suffix of -o, else terminal)")
    parser.add_argument("-o", "--output", type=Path, help="write to this file instead of the terminal")
    parser.add_argument(
        "--parts",
        action="store_true",
        help="compare runs of task=score part by part, without all predictions in memory; RUNS and --baseline are folders of records",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read and compare the runs and print or write the tables."""
    if options.parts:
        return by_parts(options)
    from multicrop.compare import command, protocols, render
    from multicrop.files import write_text

    runs, found = command.read_runs(options)
    baseline = options.baseline if command.is_row(options) else "baseline"
    form = options.format or (render.format_of(options.output) if options.output else "terminal")
    if options.top is None:
        options.top = 0 if form == "csv" else TOP
    if options.protocol:
        shown = protocols.protocol_tables(runs, options.protocol)
    else:
        shown = [table for block in found for table in _tables(block, options, baseline)]
    if options.published:
        from multicrop.compare.beside_published import published_table

        shown.append(published_table(runs))
    if options.output:
        write_text(options.output, render.render(shown, form))
        print(f"written: {options.output}")
    elif form == "terminal":
        from rich.console import Console

        render.show(Console(), shown)
    else:
        print(render.render(shown, form), end="")
    command.write_figures(found, options)
    return 0


def by_parts(options: argparse.Namespace) -> int:
    """Print the comparison of the final row of each run with the baseline."""
    from rich.console import Console
    from rich.table import Table

    from multicrop.compare.command import is_row
    from multicrop.compare.parts import compare_parts
    from multicrop.record import parts_at

    table = Table(title=f"against {options.baseline}, top-1 %", title_justify="left")
    for column in ("run", "accuracy", "difference", "95 %", "rescued/lost", "p"):
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for place in options.runs:
        parts = parts_at(place)
        own = {"baseline_row": options.baseline} if is_row(options) else {}
        found = compare_parts(parts, parts if own else parts_at(options.baseline), **own)
        final = parts.total()
        accuracy, interval = final.rows["final"].measures(final.images)["accuracy"], f"[{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
        cells = f"{100 * accuracy:.2f}", f"{100 * found.difference:+.2f}", interval, f"{found.rescued}/{found.lost}", f"{found.p_value:.2g}"
        table.add_row(place, *cells)
    Console().print(table, markup=False)
    return 0


def _tables(block: "Block", options: argparse.Namespace, baseline: str) -> "list[Table]":
    """The leaderboard of a block and the tables of --by and --matrix."""
    from dataclasses import replace

    from multicrop.compare import details, tables

    first = options.top or len(block.entries)
    shown = replace(block, entries=tuple(e for i, e in enumerate(block.entries) if i < first or e.is_baseline))
    hidden = len(block.entries) - len(shown.entries)
    notes = (*block.notes, *((f"{hidden} more methods; --top 0 shows all",) if hidden else ()))
    made = [tables.leaderboard_table(replace(shown, notes=notes), baseline)]
    if options.trust:
        from multicrop.compare.trust_tables import methods_table

        made.append(methods_table(shown))
    if options.by:
        parts_of = {"class": details.by_class, "domain": details.by_domain}[options.by]
        made += [tables.parts_table(block, e.label, options.by, parts_of(e), baseline) for e in shown.entries if e.comparison]
    if options.matrix:
        alike, rescues = details.agreement(shown.entries), details.rescues(shown.entries)
        title = "share of images with the same prediction, %"
        made.append(tables.matrix_table(shown, "agreement", title, alike, lambda v: f"{100 * v:.0f}"))
        made.append(
            tables.matrix_table(
                shown, "rescues", "images that the row method classifies correctly and the column method does not", rescues, str
            )
        )
    return made
