"""Experiment files outside the configuration, and what the options of groups compose to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


def register_experiments(arguments: Sequence[str]) -> list[str]:
    """Make experiment files outside the configuration known to Hydra, such as the chosen.yaml of a record.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The command line, with the name of a registered option in place of the path in ``experiment=PATH.yaml``.

    Raises:
        ValueError: If there is no such file.
    """
    return [_registered(word) if word.startswith("experiment=") and word.endswith(".yaml") else word for word in arguments]


def registered_options(group: str) -> list[str]:
    """The options of a group that `register_experiments` has added."""
    stored = ConfigStore.instance()
    return [name.removesuffix(".yaml") for name in stored.list(group)] if group in stored.repo else []


def option_values(options: Mapping[str, str]) -> dict[str, Any]:
    """The configuration that these options of groups compose to, resolved; empty outside Hydra."""
    if not GlobalHydra.instance().is_initialized():
        return {}
    cfg = compose("config", overrides=[f"{group}={option}" for group, option in options.items()])
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def weight_of(values: Mapping[str, Any]) -> float:
    """The weight of an aggregator's logits against the global view's, as its file says; 1 where it says none."""
    return float((values.get("facts") or {}).get("fusion_weight", 1.0))


def _registered(word: str) -> str:
    path = Path(word.partition("=")[2]).expanduser()
    if not path.is_file():
        raise ValueError(f"{word}: there is no such file; pass the path of an experiment file, such as the chosen.yaml of a record")
    name = path.resolve().with_suffix("").as_posix().strip("/").replace("/", "-")
    ConfigStore.instance().store(group="experiment", name=name, node=OmegaConf.load(path), package="_global_")
    return f"experiment={name}"
