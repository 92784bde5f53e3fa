"""Overrides, as ``crop=random_k16`` or ``seed=2``: how they are read, which names there are, and how they change a configuration."""

import copy
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multicrop.config.job import CONF
from multicrop.config.knobs import check_values
from multicrop.config.options import groups_in, option_content, option_files

COMPUTING = ("trainer", "engine")  # groups that decide how a run computes and none of its numbers
ALL_KNOBS = "python run.py --cfg job prints all knobs"


def parsed(arguments: Sequence[str]) -> list[Override]:
    """The overrides of a command line; raises ValueError for a word that is none."""
    parser, overrides = OverridesParser.create(), []
    for before, word in zip(["", *arguments], arguments, strict=False):
        if word.startswith(("-", "~")) or ("=" not in word and before.startswith("-")):  # a flag, its value, or a deletion
            continue
        if "=" not in word:
            raise ValueError(f"{word} is no override; write NAME=VALUE, such as crop=random_k16 or seed=2")
        try:
            overrides.append(parser.parse_override(word))
        except HydraException as error:
            name, value = word.split("=", 1)
            reason = str(error).splitlines()[0]
            raise ValueError(f"{word} cannot be read ({reason}). Quote a text that has marks in it: '{name}=\"{value}\"'") from None
    return overrides


def names_in(cfg: DictConfig) -> Iterator[str]:
    """Dotted names of all nodes and leaves."""
    nodes: list[tuple[str, Any]] = [("", OmegaConf.to_container(cfg, resolve=False))]
    while nodes:
        prefix, node = nodes.pop()
        for key, value in node.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                nodes.append((f"{prefix}{key}.", value))


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of a sentence that proposes the options whose names are similar."""
    options = [option for option in dict.fromkeys(options) if not option.endswith("_")]  # _target_ is no knob
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if not near:
        tails = {option.rsplit(".", 1)[-1]: option for option in options}
        near = [tails[tail] for tail in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else "."


def changed(cfg: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A copy of a configuration with other values of knobs."""
    made = copy.deepcopy(cfg)
    for override in overrides:
        try:
            OmegaConf.update(made, override.key_or_group, override.value(), force_add=True)
        except OmegaConfBaseException as error:
            raise ValueError(f"{override.input_line} cannot be set ({str(error).splitlines()[0]}). {ALL_KNOBS}") from None
    return made


def _computed_by(cfg: DictConfig, chosen: Sequence[str]) -> DictConfig:
    """A copy of a configuration with other options of groups; raises ValueError where there is no such option."""
    made = copy.deepcopy(cfg)
    for group, option in (word.split("=", 1) for word in chosen):
        files = option_files(group, [CONF])
        if option not in files:
            raise ValueError(f"{group}={option} is not an option{nearest(option, files)} There are {', '.join(files)}")
        made[group] = option_content(files[option])
    return made


def changed_record(cfg: DictConfig, words: Sequence[str]) -> DictConfig:
    """The configuration of a record with other values of knobs.

    Args:
        cfg: The configuration, whose options are composed.
        words: Overrides as for run.py; ``+NAME=VALUE`` adds a knob that the record does not have. Options can be chosen in the groups
            that decide how a run computes and none of its numbers: ``engine=ray``, ``trainer=gpu``.

    Raises:
        ValueError: If an override cannot be read, chooses an option of another group, has several values, deletes, or names no knob of the
            record; or if a value does not fit.
    """
    chosen = [word for word in words if word.split("=", 1)[0] in COMPUTING]
    words, cfg = [word for word in words if word not in chosen], _computed_by(cfg, chosen)
    overrides, groups, known = parsed(words), groups_in([CONF]), set(names_in(cfg))
    if deletions := [word for word in words if word.startswith(("-", "~"))]:
        raise ValueError(f"{', '.join(deletions)}: the configuration of a record takes NAME=VALUE alone")
    for override in overrides:
        name, added = override.key_or_group, override.type in (OverrideType.ADD, OverrideType.FORCE_ADD)
        if name in groups:
            raise ValueError(
                f"{override.input_line} chooses an option, and the configuration of a record has its own: set a knob ({name}.KNOB=VALUE), "
                "or pass an experiment file instead of the record"
            )
        if override.is_sweep_override():
            raise ValueError(f"{override.input_line} holds several values, and the configuration of a record takes one")
        if not added and name not in known:
            raise ValueError(f"{name} is no knob of the record{nearest(name, known)} Its config.yaml has all")
    made = changed(cfg, overrides)
    if overrides:  # an older record may have knobs that parts have no more
        check_values(made, cfg, first=[override.key_or_group for override in overrides], others=False)
    return made
