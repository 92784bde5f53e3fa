"""`multicrop run ...` is `python run.py ...` from any folder; records and banks lie below the current folder."""

import argparse
import runpy
import sys
from collections.abc import Callable, Sequence

HELP = "run an experiment or a sweep: multicrop run task=tta crop=random_k16"


def add(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command, whose arguments are Hydra's (see `start`)."""
    add_parser("run", help=HELP, description=__doc__)


def start(words: Sequence[str]) -> None:
    """Run the script; it ends the process with its exit status.

    Args:
        words: Overrides and flags of Hydra.
    """
    from multicrop.config import ROOT

    sys.argv = [str(ROOT / "run.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")
