"""Another data set than the scored one: what a few-shot adapter learns from (``task.source``), and unknown classes (``ood``)."""

import copy
import difflib
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from multicrop.config import CONF
from multicrop.data.halves import HALVES

GROUPS = ("dataset", "prompt", "crop")  # what follows from the data set
Source = str | Mapping[str, Any] | None


def composed(cfg: DictConfig) -> Source:
    """The value of ``task.source`` with a data set composed to values: its own, and those of prompt and crop policy with its facts.

    Args:
        cfg: The configuration.

    Raises:
        ValueError: If the name is neither a half nor an option of the group ``dataset``.
    """
    name = OmegaConf.select(cfg, "task.source")
    if name is None or name in HALVES:
        return name
    if isinstance(name, DictConfig):  # the configuration of a record
        return OmegaConf.to_container(name, resolve=True)  # type: ignore[return-value]
    whole = _with_dataset(cfg, "task.source", str(name), cfg.task.source_knobs)
    return {"name": str(name), **{group: OmegaConf.to_container(OmegaConf.select(whole, group), resolve=True) for group in GROUPS}}


def unknown_dataset(cfg: DictConfig) -> dict[str, Any] | None:
    """The values of the data set that ``ood`` names; None where it names none, or a half of the classes.

    Args:
        cfg: The configuration.

    Raises:
        ValueError: If the name is neither a half nor an option of the group ``dataset``.
    """
    name = OmegaConf.select(cfg, "ood")
    if name is None or name in HALVES:
        return None
    whole = _with_dataset(cfg, "ood", str(name), cfg.ood_knobs)
    return OmegaConf.to_container(whole.dataset, resolve=True)  # type: ignore[return-value]


def _with_dataset(cfg: DictConfig, knob: str, name: str, knobs: Any) -> DictConfig:
    """The configuration with another data set, an option of its group, in place of its own; the values are not resolved."""
    with nullcontext() if GlobalHydra.instance().is_initialized() else initialize_config_dir(str(CONF), version_base="1.3"):
        options = GlobalHydra.instance().config_loader().get_group_options("dataset")
        if name not in options:
            near = difflib.get_close_matches(str(name), [*HALVES, *options], n=1)
            hint = f"did you mean {near[0]}?" if near else f"the data sets are {', '.join(options)}"
            raise ValueError(f"{knob} is base, new or a data set, got {name}; {hint}")
        node = copy.deepcopy(compose(f"dataset/{name}")["dataset"])
    whole: DictConfig = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
    whole.dataset = OmegaConf.merge(node, knobs or {})
    return whole
