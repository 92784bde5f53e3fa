"""`multicrop import FILES... -o FOLDER`: results of others, which they exported, as records that compare and report read."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "read the exported results of others, to compare them with your own"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("import", help=HELP, description=__doc__)
    parser.add_argument("places", nargs="+", type=Path, help="files or folders that multicrop export wrote, or folders of records")
    parser.add_argument("--by", help="who ran them (default: who the export names)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("imported"), metavar="FOLDER", help="the folder to write (default: imported)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the records and list them."""
    from multicrop.compare.foreign import import_runs

    for place in options.places:
        for record in import_runs(place, options.output, by=options.by):
            print(f"imported: {record}")
    return 0
