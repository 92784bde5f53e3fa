"""`multicrop COMMAND`: what looks after banks, texts, data and records; experiments themselves are `python run.py`."""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry of the console script; a user's mistake ends with one line that says what to do, and exit status 2."""
    parser = argparse.ArgumentParser(prog="multicrop", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}").add(commands)
    options = parser.parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
