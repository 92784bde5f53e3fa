"""The options that the contract tests run on, and what they compose to."""

import copy
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from multicrop.config import CONF, register_resolvers, without
from multicrop.config.options import own_folder
from multicrop.runs.catalogue import options_of

VARIABLE = "MULTICROP_CONFIG_DIR"


@cache
def own() -> Path | None:
    """The configuration folder of the user's own, whose options may name modules in the current folder."""
    folder = os.environ.get(VARIABLE)
    if folder:
        sys.path.append(str(Path.cwd()))
    return own_folder(["--config-dir", folder], CONF) if folder else None


@cache
def options(group: str) -> list[str]:
    """The names of all options of a config group."""
    return [option.name for option in options_of(group, own())]


@cache
def foreign(group: str) -> list[str]:
    """The options of a config group that are not in multicrop's conf/."""
    return [option.name for option in options_of(group, own()) if not option.path.is_relative_to(CONF) or option.package]


def composed(*overrides: str) -> Any:
    """The configuration of a run, as Hydra composes it, without an output folder; each combination is composed once."""
    return copy.deepcopy(_composed(overrides))


def made(group: str, option: str, **knobs: Any) -> Any:
    """What an option makes, or for a file with ``_partial_`` the function that takes the remaining arguments."""
    return instantiate(_node(group, option), **knobs)


@cache
def _node(group: str, option: str) -> Any:
    """What an option composes to, without its facts; Hydra copies what it instantiates."""
    return without(composed(f"{group}={option}")[group], "facts")


@cache
def _composed(overrides: tuple[str, ...]) -> Any:
    register_resolvers()
    search = [f"hydra.searchpath=[file://{own()}]"] if own() else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["logger=none", *search, *overrides])
