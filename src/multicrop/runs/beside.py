"""The aggregators that a run shows beside its own: their names in the configuration, composed to values."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from multicrop.config import CONF, weight_of

GROUP = "aggregator"


def composed(cfg: DictConfig, own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of the aggregators that ``task.beside`` names, by name.

    The run's own is left out, and in a run of label prompts those that the aggregator's file names and that read descriptions.

    Args:
        cfg: The configuration.
        own: The values of the run's own aggregator.

    Raises:
        ValueError: If ``task.beside`` is no list, or a name is no option of the group ``aggregator``.
    """
    names = OmegaConf.select(cfg, "task.beside")
    if names is None:
        return {}
    if isinstance(names, DictConfig):  # the configuration of a record
        return OmegaConf.to_container(names, resolve=True)  # type: ignore[return-value]
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ValueError(f"task.beside is a list of aggregators, such as [dnd,max], got {names!r}")
    if not names:
        return {}
    with nullcontext() if GlobalHydra.instance().is_initialized() else initialize_config_dir(str(CONF), version_base="1.3"):
        made = {str(name): _values(cfg, str(name)) for name in names}
    own = _decisive(own)
    if own.get("text_set") == "label" and names == OmegaConf.select(cfg, f"{GROUP}.facts.beside"):  # the prompts may have no description
        made = {name: values for name, values in made.items() if values.get("text_set") != "descriptions"}
    return {name: values for name, values in made.items() if (_decisive(values), weight_of(values)) != (own, cfg.task.fusion_weight)}


def _values(cfg: DictConfig, name: str) -> dict[str, Any]:
    """The values of one aggregator, as a run with it would have them."""
    search_path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    node = copy.deepcopy(_node(name, tuple(str(place.path) for place in search_path)))
    whole = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
    whole[GROUP] = node  # type: ignore[call-overload]
    whole.task.fusion_weight = weight_of(OmegaConf.to_container(node, resolve=False))  # type: ignore[arg-type]
    return OmegaConf.to_container(whole[GROUP], resolve=True)  # type: ignore[return-value]


@lru_cache
def _node(name: str, _: tuple[str, ...]) -> DictConfig:
    """The file of an aggregator, not to be changed, for the folders that Hydra looks through; the jobs of a sweep compose it once."""
    options = GlobalHydra.instance().config_loader().get_group_options(GROUP)
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(options)}"
        raise ValueError(f"task.beside names the aggregator {name}, which is not an option; {hint}")
    return compose(f"{GROUP}/{name}")[GROUP]


def _decisive(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "facts"}
