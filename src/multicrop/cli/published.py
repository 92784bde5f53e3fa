"""`multicrop published`: numbers that papers report, with their sources and the commands that run the same settings here."""

import argparse
from collections.abc import Callable

HELP = "list published numbers, their sources and commands"
FILTERS = ("study", "experiment", "dataset", "model", "method")


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser("published", help=HELP, description=__doc__)
    for name in FILTERS:
        parser.add_argument(f"--{name}", help=f"only rows of this {name}")
    parser.add_argument("--commands", action="store_true", help="print each row's command below it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the rows that match all filters; the exit status is 1 if there are none."""
    from multicrop.compare.published import read_published

    wanted = {name: value for name in FILTERS if (value := getattr(options, name)) is not None}
    found = [row for row in read_published() if all(getattr(row, name) == value for name, value in wanted.items())]
    for row in found:
        print(f"{row.experiment}, {row.dataset}, {row.model}: {row}")
        if options.commands:
            print(f"  {row.command}")
    if not found:
        print(f"no published number with {wanted}; multicrop published lists all")
    return 0 if found else 1
