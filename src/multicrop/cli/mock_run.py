"""`multicrop mock-run ...`: the run that the overrides describe, on 20 images and without a logger, before the long one."""

import argparse
from collections.abc import Callable, Sequence

from multicrop.cli import run

HELP = "the whole way on 20 images, before a long run: multicrop mock-run model=NAME dataset=NAME"
OVERRIDES = ("limit=20", "logger=none", "paths.output=${oc.env:MULTICROP_OUTPUT,outputs}/mock")


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command, whose arguments are Hydra's (see `start`)."""
    add_parser("mock-run", help=HELP, description=__doc__)


def start(words: Sequence[str]) -> None:
    """Run the script with few images; what the words set stays.

    Args:
        words: Overrides and flags of Hydra.
    """
    named = {word.partition("=")[0] for word in words}
    run.start([*words, *(word for word in OVERRIDES if word.partition("=")[0] not in named)])
