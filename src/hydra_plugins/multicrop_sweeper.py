"""Hydra's basic sweeper for many short jobs: each choice of groups is composed once, and knobs are set on a copy.

Hydra composes the configuration of every job twice from about thirty files, once to check it and once to run it, which takes longer
than scoring a small feature bank. In a sweep over knobs all jobs have the same groups. Hydra has no public interface for the sweeper's
loader, so this file, and no other, uses Hydra's internals; tests/test_sweeps.py fails if their signatures or results change.
The sweeper is the option `knobs` of the group hydra/sweeper, which conf/hydra/default.yaml selects.
"""

import copy
from collections.abc import Sequence
from functools import cached_property

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

MOST = 16  # composed choices of groups in memory; the least recently used is dropped


class KnobLoader(ConfigLoaderImpl):
    """A configuration loader that composes each choice of groups once."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose a job as Hydra's loader does, from a copy where an earlier job has the same groups."""
        parsed = OverridesParser.create(config_loader=self).parse_overrides(sweep_overrides)
        knobs = [override for override in parsed if self.is_knob(override)]
        groups = tuple(override.input_line for override in parsed if override not in knobs)
        cached = self._composed.pop(groups, None) or super().load_sweep_config(master_config, list(groups))
        self._composed[groups] = cached
        while len(self._composed) > MOST:
            self._composed.pop(next(iter(self._composed)))
        cfg = copy.deepcopy(cached)
        self._apply_overrides_to_config(knobs, cfg)
        cfg.hydra.overrides.task = [override.input_line for override in parsed]
        style = cfg.hydra.job.config.override_dirname
        words = {"kv_sep": style.kv_sep, "item_sep": style.item_sep, "exclude_keys": style.exclude_keys}
        cfg.hydra.job.override_dirname = get_overrides_dirname(overrides=parsed, **words)
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

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


class KnobSweeper(BasicSweeper):
    """The basic sweeper with a KnobLoader."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up the launcher with a KnobLoader."""
        loader = KnobLoader(hydra_context.config_loader.config_search_path)
        context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check one job per choice of groups and names of knobs; the others differ only in the values of knobs."""
        loader, shapes = self.hydra_context.config_loader, {}
        for job in batch:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(job))
            shape = tuple(o.key_or_group if loader.is_knob(o) else o.input_line for o in parsed)
            shapes.setdefault(shape, job)
        super().validate_batch_is_legal(list(shapes.values()))


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="knobs",
    node={"_target_": f"{__name__}.{KnobSweeper.__name__}", "max_batch_size": None, "params": None},
    provider="multicrop",
)
