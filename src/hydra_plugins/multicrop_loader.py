"""Hydra's loader of configurations for many jobs in one process: files are read once, and choices of groups are composed once.

In a sweep over knobs all jobs have the same groups, and knobs are set on a copy. Hydra has no public interface for the sweeper's loader
or its basic sweeper, so this file, and no other, imports Hydra's internals; tests/test_sweeps.py fails if their signatures or results
change.
"""

import copy
from collections.abc import Sequence
from functools import cached_property

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

__all__ = ["BasicSweeper", "KnobLoader"]  # multicrop_sweeper.py takes both

LEFT_OUT = ("hydra", "logger")  # parts of the configuration that no number depends on
MOST = 16  # composed choices of groups in memory; the least recently used is dropped


class Files(dict[tuple, ConfigResult | None]):
    """Files of a configuration by their places and names; a copy is the same object."""

    def __deepcopy__(self, memo: dict) -> "Files":
        return self


class ReadOnce(ConfigRepository):
    """Hydra's reader of configuration files, which reads each once: reading them is half the time of a composition."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.files = Files()

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A copy of what was read, which Hydra changes."""
        key = (*(source.full_path() for source in self.sources), config_path)
        if key not in self.files:
            self.files[key] = super().load_config(config_path)
        return copy.deepcopy(self.files[key])


class KnobLoader(ConfigLoaderImpl):
    """A configuration loader that reads each file, and composes each choice of groups, once."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = ReadOnce(config_search_path)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose a job as Hydra's loader does, from a copy where an earlier job has the same groups."""
        parsed = self.parsed(sweep_overrides)
        groups, knobs = self._split(parsed)
        cfg = copy.deepcopy(self._composed_of(master_config, groups))
        self._apply_overrides_to_config(knobs, cfg)
        cfg.hydra.overrides.task = [override.input_line for override in parsed]
        style = cfg.hydra.job.config.override_dirname
        words = {"kv_sep": style.kv_sep, "item_sep": style.item_sep, "exclude_keys": style.exclude_keys}
        cfg.hydra.job.override_dirname = get_overrides_dirname(overrides=parsed, **words)
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    def without_hydra(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]] | None:
        """A job's configuration without Hydra's part and the logger, and its options by group, in a tenth of the time.

        The next call may change it. None where the values depend on Hydra's part, or that part is the job's own.
        """
        parsed = self.parsed(sweep_overrides)
        groups, knobs = self._split(parsed)
        composed = self._composed_of(master_config, groups)
        names = tuple(knob.key_or_group for knob in knobs)
        if (groups, names) not in self._plain:  # jobs that set the same knobs overwrite each other's values
            plain = copy.deepcopy(OmegaConf.masked_copy(composed, [key for key in composed if key not in LEFT_OUT]))
            OmegaConf.copy_cache(from_config=master_config, to_config=plain)
            own = any(str(group).partition("=")[0].lstrip("+~").startswith("hydra") for group in groups)
            self._plain[groups, names] = None if own or "${hydra" in OmegaConf.to_yaml(plain) else plain
        plain = self._plain[groups, names]
        told = [knob for knob in knobs if knob.key_or_group.split(".")[0] not in LEFT_OUT]
        if plain is None or any("${hydra" in knob.input_line for knob in told):
            return None
        self._apply_overrides_to_config(told, plain)
        options = {group: option for group, option in composed.hydra.runtime.choices.items() if not group.startswith("hydra")}
        return plain, options

    def parsed(self, overrides: Sequence[str]) -> list[Override]:
        """The overrides of a job; each text is parsed once."""
        for text in overrides:
            if text not in self._parsed:
                (self._parsed[text],) = OverridesParser.create(config_loader=self).parse_overrides([text])
        return [self._parsed[text] for text in overrides]

    def _split(self, overrides: list[Override]) -> tuple[tuple[str, ...], list[Override]]:
        """The overrides that choose files, as texts, and those that set knobs."""
        knobs = [override for override in overrides if self.is_knob(override)]
        return tuple(str(override.input_line) for override in overrides if override not in knobs), knobs

    def _composed_of(self, master_config: DictConfig, groups: tuple[str, ...]) -> DictConfig:
        cached = self._composed.pop(groups, None) or super().load_sweep_config(master_config, list(groups))
        self._composed[groups] = cached
        while len(self._composed) > MOST:
            self._composed.pop(next(iter(self._composed)))
        return cached

    def is_knob(self, override: Override) -> bool:
        """Whether an override sets a value of the experiment, which cannot change the composed files."""
        key = override.key_or_group
        plain = override.type == OverrideType.CHANGE and override.package is None and not override.is_sweep_override()
        return plain and "/" not in key and key.split(".")[0] != "hydra" and ("." in key or key not in self._groups)

    @cached_property
    def _groups(self) -> set[str]:
        return set(self.list_groups(""))

    @cached_property
    def _composed(self) -> dict[tuple[str, ...], DictConfig]:
        return {}

    @cached_property
    def _plain(self) -> dict[tuple[tuple[str, ...], tuple[str, ...]], DictConfig | None]:
        return {}

    @cached_property
    def _parsed(self) -> dict[str, Override]:
        return {}
