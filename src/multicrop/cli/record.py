"""`multicrop record show RUNS...`: what decided each run, which model and data it read, and whether its files are as it wrote them."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "show identity, model and data of finished runs, and check their files"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("record", help=HELP, description=__doc__)
    parser.add_argument("action", choices=["show"])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of records; of several, the parts in which they differ are listed")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the records; returns the exit status, 1 where one is damaged or unfinished."""
    from multicrop.compare.identities import differing_parts, shown_record
    from multicrop.record import RecordError, read_record

    read, damaged = [], 0
    for folder in options.runs:
        try:
            read.append(read_record(folder))
            print("\n".join(shown_record(read[-1])))
        except RecordError as error:
            damaged += 1
            print(f"{folder}\n  files      DAMAGED: {error}")
    for record in read[1:]:
        print(f"{read[0].folder} and {record.folder} differ in: {', '.join(differing_parts([read[0], record])) or 'nothing known'}")
    return int(damaged > 0)
