"""`multicrop COMMAND`: manage feature banks, descriptions, data and records. Experiments are run with `python run.py`."""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console script; a wrong argument or file ends with a one-line error and exit status 2.

    Args:
        arguments: The command line without the program's name; None for that of the process.
    """
    parser = argparse.ArgumentParser(prog="multicrop", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}").add(commands.add_parser)
    options = parser.parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
