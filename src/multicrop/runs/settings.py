"""The plain values of a run's configuration. Nothing below the entry functions of this package reads a DictConfig."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from multicrop.config import CONF, check_overrides, check_values, choices, in_sweep, on_disk, register_experiments, register_resolvers
from multicrop.config.overrides import changed_record
from multicrop.config.ranges import Accelerator, Count, Cut, Devices, Threads, Workers
from multicrop.files import Objects, is_url
from multicrop.record import CONFIG, IDENTITY
from multicrop.runs import beside, source

if TYPE_CHECKING:
    from multicrop.features.engine import Engine
    from multicrop.features.remote import RemoteBanks

OF_SESSION = ("name", "run", "build", "fusion_weight", "beside", "by_shard")  # entries of a task file that its builder does not take


@dataclass(frozen=True)
class Part:
    """One component of a run: the plain values that decide it; ``_target_`` names what makes it."""

    values: Mapping[str, Any]

    def make(self, *args: Any, **kwargs: Any) -> Any:
        """The component; for a file with ``_partial_``, a function that takes the remaining arguments."""
        return instantiate(dict(self.values), *args, _convert_="all", **kwargs)

    def without(self, *keys: str) -> "Part":
        """The component less some values."""
        return Part({key: value for key, value in self.values.items() if key not in keys})


@dataclass(frozen=True)
class Compute:
    """How a run computes, which does not decide its numbers: the group ``trainer``."""

    accelerator: Accelerator
    devices: Devices
    threads: Threads | None
    cut: Cut
    shard_images: Count
    num_workers: Workers
    batch_size: Count
    progress: bool


@dataclass(frozen=True)
class Settings:
    """A run's configuration as plain values and components.

    ``config`` is the whole of it, resolved, for the record; ``output`` is the run's own folder, ``outputs`` that of all runs.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    output: Path
    outputs: Path
    in_sweep: bool
    compute: Compute

    @property
    def task(self) -> dict[str, Any]:
        """The values of the task's file."""
        return self.config["task"]

    @property
    def task_knobs(self) -> dict[str, Any]:
        """What the task's builder takes."""
        return {key: value for key, value in self.task.items() if key not in OF_SESSION}

    @property
    def cache(self) -> Path:
        """The folder of feature banks and of fits that were killed; with banks in object storage, that of their local copies."""
        paths = self.config["paths"]
        return Path(paths["local"] if is_url(paths["cache"]) else paths["cache"])

    @property
    def banks(self) -> "Path | RemoteBanks":
        """The place of feature banks: a folder, or object storage."""
        paths = self.config["paths"]
        if not is_url(paths["cache"]):
            return self.cache
        from multicrop.features.remote import RemoteBanks  # torch, which a command that only composes does not load

        return RemoteBanks(paths["cache"], self.cache, int(paths["local_gb"] * 1e9))

    @property
    def record_place(self) -> Objects | None:
        """Where the record of the run is put in object storage: below ``paths.output`` as its folder is below that of all runs, or by the
        name of a folder elsewhere (``hydra.run.dir``). None where it stays in ``output``.
        """
        if not is_url(url := self.config["paths"]["output"]):
            return None
        own, top = self.output.absolute(), self.outputs.absolute()
        return Objects(url).below(*(own.relative_to(top).parts if own.is_relative_to(top) else (own.name,)))

    @property
    def engine(self) -> "Engine":
        """What encodes the missing shards of banks: this process, or a Ray cluster."""
        from multicrop.features.engine import local

        return self.part("engine").make() if self.config.get("engine") else local  # none in an older record

    def part(self, group: str) -> Part:
        """The component that a config group chose, without its ``facts``, which crop policies and prompts read.

        Raises:
            ValueError: If the configuration chose none.
        """
        values = self.config.get(group)
        if not values or "_target_" not in values:
            raise ValueError(f"the configuration has no {group}; choose one with {group}=NAME")
        return Part(values).without("facts")

    @property
    def limit(self) -> int | None:
        """The most images that are scored, and that settings are chosen on; None: all."""
        return self.config.get("limit")  # none in an older record

    @property
    def all_logits(self) -> bool:
        """Whether the record keeps the logits of all classes.

        Raises:
            ValueError: If ``logits`` is neither top nor all.
        """
        if (kept := self.config["logits"]) not in ("top", "all"):
            raise ValueError(f"logits is top (the 20 highest of each image) or all (of up to 1,000 classes), got {kept!r}")
        return kept == "all"

    @property
    def beside(self) -> dict[str, Part]:
        """The further aggregators whose rows the run shows, by name."""
        return {name: Part(values) for name, values in (self.task.get("beside") or {}).items()}

    def __getitem__(self, name: str) -> Any:
        """A value at the top level of the configuration, such as ``seed``."""
        return self.config[name]


def settings_of(cfg: DictConfig) -> Settings:
    """The plain values of a composed configuration."""
    config = values_of(cfg)
    output = Path(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else outputs_of(config)
    return settings_from(config, choices=choices(), output=output, in_sweep=in_sweep())


def outputs_of(config: Mapping[str, Any] | DictConfig) -> Path:
    """The folder on this machine in which the runs of a configuration write their records."""
    return Path(on_disk(config["paths"]["output"], config["paths"].get("local", "")))  # an older record has no such folder


def values_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved values of a configuration."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if "beside" in config["task"]:
        config["task"]["beside"] = beside.composed(cfg, config[beside.GROUP])
    if config["task"].get("source"):
        config["task"]["source"] = source.composed(cfg)
    if (unknown := source.unknown_dataset(cfg)) is not None:
        config["ood_knobs"] = unknown
    return config


def settings_from(config: dict[str, Any], *, choices: dict[str, str], output: Path, in_sweep: bool) -> Settings:
    """The settings of a resolved configuration, whose run has this folder."""
    known = Compute.__dataclass_fields__
    compute = Compute(**{name: value for name, value in config["trainer"].items() if name in known})
    return Settings(config, choices or _targets(config), output, outputs_of(config), in_sweep, compute)


def composed(overrides: Sequence[str] = (), file: Path | None = None) -> Settings:
    """The settings that run.py would have, for use outside of it; without a logger.

    Args:
        overrides: As on the command line of run.py.
        file: An experiment file, such as chosen.yaml of ``task=choose``; or the folder of a record, or its config.yaml; None: neither.

    Raises:
        ValueError: If there is no such file or a knob has a value out of its range.
    """
    register_resolvers()
    if file is not None and file.name == CONFIG and file.with_name(IDENTITY).is_file():
        file = file.parent
    if file is not None and (file / CONFIG).is_file():
        return settings_of(changed_record(cast(DictConfig, OmegaConf.load(file / CONFIG)), overrides))
    if file is not None and not (file.is_file() and file.suffix == ".yaml"):
        raise ValueError(f"{file} is neither an experiment file (*.yaml) nor the folder of a record, which holds {CONFIG}")
    given = [] if file is None else register_experiments([f"experiment={file}"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[*given, "logger=none", *overrides])
        check_values(cfg)
        return settings_of(cfg)


def of_command_line(overrides: Sequence[str]) -> Settings:
    """The settings of overrides that were typed, checked as run.py checks them; without a logger, which needs a run."""
    register_resolvers()
    check_overrides([*overrides], CONF)
    return composed([override for override in overrides if not override.startswith("logger")])


def _targets(config: dict[str, Any]) -> dict[str, str]:
    """The option of each group outside Hydra: the last part of its ``_target_``."""
    return {k: v["_target_"].rsplit(".", 1)[-1] for k, v in config.items() if isinstance(v, dict) and "_target_" in v}
