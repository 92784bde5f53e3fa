"""Hydra's basic sweeper for many short jobs: configurations are composed by KnobLoader, and jobs whose runs are finished are not started.

The sweeper is the option `knobs` of the group hydra/sweeper, which conf/hydra/default.yaml selects.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.multicrop_loader import BasicSweeper, KnobLoader

if TYPE_CHECKING:
    import multicrop.record

log = logging.getLogger(__name__)


class UnfinishedLauncher(Launcher):
    """Starts the jobs whose runs are not finished, by Hydra's launcher in this process; the others get a pointer to their record.

    A job that is not started writes no log and no copy of its configuration, and calls no callback.
    """

    def __init__(self, launcher: Launcher, loader: KnobLoader, config: DictConfig) -> None:
        self.launcher, self.loader, self.config = launcher, loader, config
        sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        self.numbered = isinstance(sweep, dict) and sweep["subdir"] == "${hydra.job.num}" and config.hydra.output_subdir == ".hydra"

    def setup(self, **_: Any) -> None:
        """Nothing: the launcher is set up already."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """The results of all jobs in their order."""
        results: list[JobReturn] = []
        waiting: list[Sequence[str]] = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            record = self._record(overrides, number)
            if record is None:
                waiting.append(overrides)
                continue
            results += self._launch(waiting, number - len(waiting))
            waiting = []
            results.append(self._skip(overrides, number, record))
        return results + self._launch(waiting, initial_job_idx + len(job_overrides) - len(waiting))

    def _launch(self, overrides: list[Sequence[str]], first: int) -> list[JobReturn]:
        return [*self.launcher.launch(overrides, first)] if overrides else []

    def _record(self, overrides: Sequence[str], number: int) -> "multicrop.record.Record | None":
        """The record of a job's finished run."""
        found = self.loader.without_hydra(self.config, overrides) if self.numbered else None
        if found is None:
            return None
        from multicrop.runs.finished_jobs import finished_record  # torch, which Hydra's plugins load only in a sweep

        return finished_record(*found, self._folder(number))

    def _skip(self, overrides: Sequence[str], number: int, record: "multicrop.record.Record") -> JobReturn:
        from multicrop.runs.finished_jobs import skip

        lines = [str(override.input_line) for override in self.loader.parsed(overrides)]
        log.info("\t#%d : %s", number, " ".join(filter_overrides(lines)))
        return JobReturn(overrides=lines, status=JobStatus.COMPLETED, _return_value=skip(record, self._folder(number), lines))

    def _folder(self, number: int) -> Path:
        return self._top / str(number)

    @cached_property
    def _top(self) -> Path:
        return Path(str(self.config.hydra.sweep.dir))


class KnobSweeper(BasicSweeper):
    """The basic sweeper with a KnobLoader, which starts no job whose run is finished."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set up the launcher with a KnobLoader."""
        loader = self.loader = KnobLoader(hydra_context.config_loader.config_search_path)
        context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)
        if self.launcher and config.hydra.runtime.choices["hydra/launcher"] == "basic":  # in other processes each job looks for itself
            self.launcher = UnfinishedLauncher(self.launcher, loader, config)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check one job per choice of groups and names of knobs; the others differ only in the values of knobs."""
        loader, shapes = self.loader, {}
        for job in batch:
            parsed = loader.parsed(job)
            shape = tuple(o.key_or_group if loader.is_knob(o) else o.input_line for o in parsed)
            shapes.setdefault(shape, job)
        super().validate_batch_is_legal(list(shapes.values()))


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="knobs",
    node={"_target_": f"{__name__}.{KnobSweeper.__name__}", "max_batch_size": None, "params": None},
    provider="multicrop",
)
