"""`multicrop report RUNS... -o report.html`: one HTML page of finished runs, which needs no network."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "write one HTML page of finished runs: leaderboard, plots, classes, images"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    from multicrop.compare.command import add_runs

    parser = add_parser("report", help=HELP, description=__doc__)
    add_runs(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    parser.add_argument("--pictures", type=int, default=300, help="maximum number of distinct pictures in the page (default: 300, 0: none)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read and compare the runs and write the page."""
    from multicrop.compare import command
    from multicrop.compare.page import page
    from multicrop.files import write_text

    runs, found = command.read_runs(options)
    text = page(found, baseline=options.baseline, pictures=options.pictures)
    write_text(options.output, text)
    print(f"{len(runs)} runs in {options.output}, {len(text) / 2**20:.1f} MiB")
    command.write_figures(found, options)
    return 0
