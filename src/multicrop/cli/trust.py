"""`multicrop trust RUNS...`: calibration, accuracy on the most confident images, and detection of unknown classes of finished runs."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "show calibration, selective accuracy and detection of unknown classes of finished runs"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("trust", help=HELP, description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of records; unknown classes need records of logits=all")
    parser.add_argument("--row", action="append", help="a row of the record (default: global and final); may be given several times")
    parser.add_argument("--format", choices=("terminal", "markdown", "latex", "csv"), default="terminal", help="output format")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; returns the exit status."""
    from multicrop.compare import render
    from multicrop.compare.trust_tables import trust_of, trust_table
    from multicrop.record import read_record

    rows = []
    for folder in options.runs:
        record = read_record(folder)
        rows += [{"run": folder.name, "row": row, **trust_of(record, row)} for row in options.row or ("global", "final")]
    print(render.render([trust_table(rows)], options.format), end="")
    return 0
