"""`multicrop ls KIND`: the models, data sets, crop policies, ... that `multicrop run` knows, one per line with source and cost."""

import argparse
from collections.abc import Callable

HELP = "list models, datasets, crops, aggregators, adapters, methods, sweeps, ... with source and cost"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    from multicrop.runs.catalogue import KINDS

    parser = add_parser("ls", help=HELP, description=__doc__)
    parser.add_argument("kind", choices=tuple(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the options of the group."""
    from multicrop.runs.catalogue import KINDS, options_of

    listed = options_of(KINDS[options.kind])
    width = max(len(option.name) for option in listed)
    for option in listed:
        more = "; ".join(filter(None, (option.source, option.cost)))
        print(f"{option.name:<{width}}  {option.summary}{f' [{more}]' if more else ''}")
    return 0
