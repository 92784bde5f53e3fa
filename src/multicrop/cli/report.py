"""`multicrop report RUNS... -o report.html`: one page that needs no network, for reading and sharing finished runs."""

import argparse
from pathlib import Path

HELP = "one HTML page of finished runs: leaderboard, plots, classes, images"


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser("report", help=HELP, description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of records, globs of them, or the folder of a sweep")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("--baseline", default="global", help="global, crops_mean, aggregated (rows of every record), or a run's folder")
    parser.add_argument("--pictures", type=int, default=300, help="at most this many distinct pictures in the page (0: none)")
    parser.add_argument("--figures", type=Path, help="also each plot as PNG and PDF into this folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, compare, write the page; records that cannot be used are named on standard error."""
    import sys

    from multicrop.comparison.leaderboard import blocks
    from multicrop.comparison.page import page
    from multicrop.comparison.records import ROWS, collect

    records, problems = collect(options.runs)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    row = options.baseline in ROWS
    found = blocks(records, options.baseline if row else collect([options.baseline])[0])
    text = page(found, baseline=options.baseline, pictures=options.pictures)
    options.output.write_text(text, encoding="utf-8")
    print(f"{len(records)} runs in {options.output}, {len(text) / 2**20:.1f} MiB")
    if options.figures:
        from multicrop.comparison.plots import save_figures

        for path in save_figures(found, options.figures):
            print(f"written: {path}")
    return 0
