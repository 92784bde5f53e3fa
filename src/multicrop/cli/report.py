"""`multicrop report RUNS... -o report.html`: one page that needs no network, for reading and sharing finished runs."""

import argparse
from pathlib import Path

HELP = "one HTML page of finished runs: leaderboard, plots, classes, images"


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    from multicrop.compare.command import add_runs

    parser = commands.add_parser("report", help=HELP, description=__doc__)
    add_runs(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("--pictures", type=int, default=300, help="at most this many distinct pictures in the page (0: none)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, compare, write the page; records that cannot be used are named on standard error."""
    from multicrop.compare import command
    from multicrop.compare.page import page

    records, found = command.read_runs(options)
    text = page(found, baseline=options.baseline, pictures=options.pictures)
    options.output.write_text(text, encoding="utf-8")
    print(f"{len(records)} runs in {options.output}, {len(text) / 2**20:.1f} MiB")
    command.write_figures(found, options)
    return 0
