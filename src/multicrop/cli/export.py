"""`multicrop export RUNS... --format csv|hf|every-eval-ever -o FOLDER`: finished runs and their predictions, for others to read."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "write finished runs as CSV, as a data set for the HuggingFace hub, or for Every Eval Ever"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    from multicrop.compare.export import FORMATS

    parser = add_parser("export", help=HELP, description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of records, globs of such folders, or the folder of a sweep")
    parser.add_argument("--format", choices=tuple(FORMATS), default="csv", help="output format (default: csv)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("exported"), metavar="FOLDER", help="the folder to write (default: exported)"
    )
    parser.add_argument("--organization", default="unknown", help="who ran them, which multicrop import reads (default: unknown)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read the runs and write them; folders whose record cannot be read are listed on standard error."""
    import sys

    from multicrop.compare.collect import collect
    from multicrop.compare.export import export

    runs, problems = collect(options.runs)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    for path in export(runs, options.output, options.format, organization=options.organization):
        print(f"written: {path}")
    return 0
