"""`multicrop COMMAND`: run experiments, compare and export records, manage feature banks, descriptions and data."""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from multicrop import __version__

HYDRAS = (["run"], ["mock-run"])  # commands whose further words are Hydra's


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console script; a wrong argument or file ends with one message and exit status 2.

    Args:
        arguments: The command line without the program's name; None for that of the process.
    """
    arguments = [*(sys.argv[1:] if arguments is None else arguments)]
    if arguments[:1] in HYDRAS:
        return importlib.import_module(f"{__name__}.{arguments[0].replace('-', '_')}").start(arguments[1:])
    parser = argparse.ArgumentParser(prog="multicrop", description=__doc__)
    parser.add_argument("--version", action="version", version=f"multicrop {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(__path__):
        command, name = importlib.import_module(f"{__name__}.{module.name}"), module.name.replace("_", "-")
        if name in arguments:  # the arguments of a command may need imports, its line in --help needs none
            command.add(commands.add_parser)
        else:
            commands.add_parser(name, help=command.HELP)
    options, further = parser.parse_known_args(arguments)
    if further and hasattr(options, "overrides") and all("=" in word and not word.startswith("-") for word in further):
        options.overrides += further  # overrides after options, which argparse does not know
    elif further:
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    try:
        sys.exit(options.run(options))
    except Exception as error:  # noqa: BLE001
        from multicrop.runs.errors import tell

        sys.exit(tell(error))
