"""What `multicrop compare` and `multicrop report` share: which runs, against what, and the figures beside."""

import argparse
import sys
from pathlib import Path

from multicrop.compare.collect import collect
from multicrop.compare.leaderboard import Block, blocks
from multicrop.record import ROWS, Record


def add_runs(parser: argparse.ArgumentParser) -> None:
    """The arguments that both commands take."""
    parser.add_argument("runs", nargs="+", help="folders of records, globs of them, or the folder of a sweep")
    parser.add_argument("--baseline", default="global", help="global, crops_mean, aggregated (rows of every record), or a run's folder")
    parser.add_argument("--figures", type=Path, help="also each plot as PNG and PDF into this folder")


def read_runs(options: argparse.Namespace) -> tuple[list[Record], list[Block]]:
    """The records and the blocks that can be paired; records that cannot be used are named on standard error."""
    records, problems = collect(options.runs)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return records, blocks(records, options.baseline if is_row(options) else collect([options.baseline])[0])


def is_row(options: argparse.Namespace) -> bool:
    """Whether the baseline is a row of every record, not a run of its own."""
    return options.baseline in ROWS


def write_figures(found: list[Block], options: argparse.Namespace) -> None:
    """The plots, where they were asked for."""
    if options.figures:
        from multicrop.compare.plots import save_figures  # matplotlib, which nothing else here needs

        for path in save_figures(found, options.figures):
            print(f"written: {path}")
