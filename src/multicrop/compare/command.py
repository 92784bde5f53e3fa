"""Arguments and steps that `multicrop compare` and `multicrop report` share: runs, baseline, figures."""

import argparse
import sys
from pathlib import Path

from multicrop.compare.collect import collect
from multicrop.compare.leaderboard import Block, blocks
from multicrop.compare.run import Run
from multicrop.record import ROWS


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both commands."""
    parser.add_argument("runs", nargs="+", help="folders of records, globs of such folders, the folder of a sweep, or s3://...")
    parser.add_argument(
        "--baseline",
        default="global",
        help="a row of every record (global, crops_mean, aggregated), or the folder of a run (default: global)",
    )
    parser.add_argument("--figures", type=Path, help="write each plot as PNG and PDF into this folder")


def read_runs(options: argparse.Namespace) -> tuple[list[Run], list[Block]]:
    """Read and pair the runs; folders whose record cannot be read are listed on standard error."""
    runs, problems = collect(options.runs)
    baseline: str | list[Run] = options.baseline
    if not is_row(options):
        baseline, of_baseline = collect([options.baseline])
        problems += of_baseline
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    return runs, blocks(runs, baseline)


def is_row(options: argparse.Namespace) -> bool:
    """Whether the baseline is a row of every record, not the folder of a run."""
    return options.baseline in ROWS


def write_figures(found: list[Block], options: argparse.Namespace) -> None:
    """Write the plots if --figures names a folder."""
    if options.figures:
        from multicrop.compare.plots import save_figures  # loads matplotlib

        for path in save_figures(found, options.figures):
            print(f"written: {path}")
