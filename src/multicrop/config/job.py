"""Properties of the Hydra job of this process, resolvers for the files in conf/, and places in the package."""

import os
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

PACKAGE = Path(__file__).parent.parent
BESIDE = PACKAGE / "repository"  # in a wheel: run.py, conf/ and the published figures
ROOT = BESIDE if BESIDE.is_dir() else PACKAGE.parent.parent
CONF = ROOT / "conf"
EMBEDDED_MODEL = PACKAGE / "encoder" / "tiny_clip"  # named "tiny" wherever a model is named
TASK_OF = {"adapter": "few_shot", "method": "tta"}  # config groups that only one task reads


def register_resolvers() -> None:
    """Register six resolvers for the files in conf/.

    ``${package:NAME}`` is a file or folder of this package, ``${in_sweep:A,B}`` is A in a job of a sweep and B elsewhere,
    ``${either:A,B}`` is the first value that is not null, and ``${for_dataset:{NAME:A,...},B}`` is the value for the data set that the run
    learns from or scores, B for one that is not listed. ``${scope:A}`` is A where it is ``local``, ``global`` or ``both``, else ``local``.
    ``${on_disk:PLACE,LOCAL}`` is the folder of the runs whose records are put there.
    """
    OmegaConf.register_new_resolver("package", lambda name: str(PACKAGE / name), replace=True)
    OmegaConf.register_new_resolver("either", lambda *values: next((v for v in values if v is not None), None), replace=True)
    OmegaConf.register_new_resolver("on_disk", on_disk, replace=True)
    OmegaConf.register_new_resolver("for_dataset", _for_dataset, replace=True)
    OmegaConf.register_new_resolver("scope", lambda texts: texts if texts in ("global", "both") else "local", replace=True)
    OmegaConf.register_new_resolver("in_sweep", lambda yes, no: yes if in_sweep() else no, replace=True)


def local_folder() -> Path:
    """The folder of local copies, ``paths.local``, where no run is configured."""
    return Path(OmegaConf.load(CONF / "config.yaml").paths.local)


def on_disk(place: str, local: str) -> str:
    """The folder in which runs write their records.

    Args:
        place: ``paths.output``: a folder, or an address in object storage.
        local: ``paths.local``, in which the records of an address are written before they are put there.

    Raises:
        ValueError: If an address holds credentials, which would become names of folders.
    """
    scheme, mark, rest = place.partition("://")
    if not mark:
        return place
    if "@" in rest or "?" in rest:
        raise ValueError(f"paths.output={scheme}://... holds credentials, which records and logs would keep: set them in the environment")
    return str(Path(local, "outputs", scheme, rest.strip("/")))


def _for_dataset(values: Mapping[str, object], default: object, *, _root_: DictConfig) -> object:
    """The value for the data set of a configuration: that of task.source, or the scored one."""
    source = OmegaConf.select(_root_, "task.source")
    learned = source if isinstance(source, str) else OmegaConf.select(_root_, "task.source.name")
    scored = OmegaConf.select(_root_, "dataset.name")
    return values.get(str(learned), values.get(str(scored), default) if learned in (None, "base", "new") else default)


def in_sweep() -> bool:
    """Whether this is a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choices() -> dict[str, str]:
    """The option chosen in each group, as on the command line; empty outside Hydra."""
    chosen = dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
    return {group: option for group, option in chosen.items() if not group.startswith("hydra")}


def parts_of(task: str) -> list[str]:
    """The config groups that only this task reads: ``adapter`` of few_shot, ``method`` of tta."""
    return [group for group, reader in TASK_OF.items() if reader == task]


def threads_of_job(available: int) -> int:
    """The number of torch threads for this job: what its launcher reserves, or its share if jobs run in parallel.

    The share is of the processors, not of ``available``: joblib divides the threads before the job starts, and one process may run
    several jobs.

    Args:
        available: Number of torch threads of the process.

    Returns:
        The number of threads, at least 1.
    """
    launcher = HydraConfig.get().launcher if in_sweep() else {}
    if "cpus_per_task" in launcher:  # submitit starts all jobs at the same time
        return launcher.cpus_per_task or 1
    wanted = int(launcher.get("n_jobs") or 1)
    if wanted == 1:
        return available
    cores = os.cpu_count() or 1
    return min(available, max(1, cores // (wanted if wanted > 0 else cores + 1 + wanted)))


def in_parallel() -> bool:
    """Whether this is a job of a sweep whose launcher starts one process per job."""
    return in_sweep() and HydraConfig.get().runtime.choices.get("hydra/launcher") != "basic"


def sweeper_takes_failures() -> bool:
    """Whether the sweeper of this job counts failed jobs itself and accepts no NaN, as Optuna's does."""
    return in_sweep() and "max_failure_rate" in HydraConfig.get().sweeper


def without(node: DictConfig, *keys: str) -> DictConfig:
    """A resolved copy of the node without keys that are not arguments of its constructor."""
    node = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
    for key in keys:
        node.pop(key, None)
    return node
