"""`multicrop ls KIND`: the models, data sets, crop policies, ... that `multicrop run` knows, one per line with source and cost."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

HELP = "list models, datasets, crops, aggregators, adapters, methods, sweeps, ... with source and cost"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    from multicrop.runs.catalogue import KINDS

    parser = add_parser("ls", help=HELP, description=__doc__)
    parser.add_argument("kind", choices=tuple(KINDS), metavar="KIND", help=", ".join(KINDS))
    add_folder(parser)
    parser.set_defaults(run=run)


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a configuration folder of the user's own."""
    parser.add_argument("--config-dir", metavar="FOLDER", help="a configuration folder of your own, as for multicrop run")


def folder_of(options: argparse.Namespace) -> Path | None:
    """The configuration folder of the user's own, whose options may name modules in the current folder."""
    from multicrop.config import CONF
    from multicrop.config.options import own_folder

    sys.path.append(str(Path.cwd()))
    return own_folder(["--config-dir", options.config_dir], CONF) if options.config_dir else None


def run(options: argparse.Namespace) -> int:
    """Print the options of the group."""
    from multicrop.runs.catalogue import KINDS, options_of

    listed = options_of(KINDS[options.kind], folder_of(options))
    width = max(len(option.name) for option in listed)
    for option in listed:
        more = "; ".join(filter(None, (option.source, option.cost, option.training, option.package)))
        print(f"{option.name:<{width}}  {option.summary}{f' [{more}]' if more else ''}")
    return 0
