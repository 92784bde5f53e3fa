"""Hydra's launcher `ray`: each job of a sweep is a task of a Ray cluster, or of a local cluster that the launcher starts.

Hydra searches the namespace `hydra_plugins` for launchers. Hydra's own plugin for Ray requires cloudpickle < 3, which conflicts with the
joblib of scikit-learn; this launcher requires only ray.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)

# init: arguments of ray.init; remote: arguments of ray.remote, the resources per job. A killed job is not retried, as with other launchers
KNOBS = {
    "init": {"address": None, "num_cpus": None, "include_dashboard": False},
    "remote": {"num_cpus": 1, "num_gpus": None, "max_retries": 0},
}


class RayLauncher(Launcher):
    """Run the jobs of a sweep as Ray tasks.

    Args:
        init: Arguments of ``ray.init``.
        remote: Arguments of ``ray.remote``: the resources per job.
    """

    def __init__(self, *, init: Mapping, remote: Mapping) -> None:
        self.init, self.remote = dict(init), dict(remote)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the sweep's context, task function and configuration."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs and return their results; raises ImportError without ray. Repeated calls of a sweeper use one cluster."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray sends usage statistics
        try:
            import ray
        except ImportError as error:
            raise ImportError("hydra/launcher=ray needs Ray: pip install -c constraints.txt -e '.[ray]'") from error
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            ray.init(**self.init)
        shared = ray.put((self.hydra_context, self.task_function, self.config, Singleton.get_state(), Path.cwd()))
        task, started = ray.remote(**self.remote)(_run), []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info("#%d: %s", number, " ".join(filter_overrides(overrides)))
            started.append(task.remote(shared, list(overrides), number))
        return ray.get(started)


def _run(shared: tuple, overrides: list[str], number: int) -> JobReturn:
    """Run one job in a Ray worker, in the working directory of the sweep."""
    hydra_context, task_function, config, state, folder = shared
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    job = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = f"{job.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(job)
    places = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
    return run_job(hydra_context=hydra_context, config=job, task_function=task_function, **places)


ConfigStore.instance().store(
    group="hydra/launcher", name="ray", node={"_target_": f"{__name__}.{RayLauncher.__name__}", **KNOBS}, provider="multicrop"
)
