"""Configuration helpers: resolvers, properties of the Hydra job, and a check of the command line that suggests similar names."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

PACKAGE = Path(__file__).parent
EMBEDDED_MODEL = PACKAGE / "encoder" / "tiny_clip"  # named "tiny" wherever a model is named
ALL_KNOBS = "python run.py --cfg job prints all knobs"
TASK_OF = {"adapter": "few_shot", "method": "tta"}  # config groups that only one task reads


def register_resolvers() -> None:
    """Register three resolvers for the files in conf/.

    ``${package:NAME}`` is a file or folder of this package, ``${in_sweep:A,B}`` is A in a job of a sweep and B elsewhere, and
    ``${either:A,B}`` is the first value that is not null.
    """
    OmegaConf.register_new_resolver("package", lambda name: str(PACKAGE / name), replace=True)
    OmegaConf.register_new_resolver("either", lambda *values: next((v for v in values if v is not None), None), replace=True)
    OmegaConf.register_new_resolver("in_sweep", lambda yes, no: yes if in_sweep() else no, replace=True)


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


def check_parts(cfg: DictConfig, options: dict[str, str]) -> None:
    """Check that the task reads the chosen adapter or method.

    Args:
        cfg: The composed configuration.
        options: Option per config group, for the message.

    Raises:
        ValueError: If an adapter or a method is chosen that the task does not read.
    """
    for group, task in TASK_OF.items():
        if cfg.get(group) is not None and cfg.task.name != task:
            raise ValueError(
                f"{group}={options.get(group, '...')} needs task={task}, got task={cfg.task.name}: "
                f"add task={task}, or remove {group}=... (a sweep over tasks cannot have {group}=...)"
            )


def check_overrides(arguments: list[str], conf: Path) -> None:
    """Check the command line before Hydra composes it.

    Hydra checks its own flags, and overrides other than ``name=value`` (appending, deleting).

    Args:
        arguments: The command line without the program's name.
        conf: Folder of the configuration.

    Raises:
        ValueError: If an option or knob is unknown (the message suggests similar names), or the task does not read a chosen part.
    """
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except HydraException:
        return
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    plain = [o for o in overrides if o.type == OverrideType.CHANGE and not o.key_or_group.startswith("hydra")]
    chosen = {o.input_line: f"{o.key_or_group}={_check_options(o, conf)}" for o in plain if o.key_or_group in groups}
    swept = [o for o in plain if o.key_or_group in groups and o.is_sweep_override()]
    knobs = [o for o in plain if o.key_or_group not in groups]
    parts = [o for o in plain if o.key_or_group in TASK_OF]
    if not (knobs or parts) or GlobalHydra.instance().is_initialized():
        return
    cfg = _composed(list(chosen.values()), conf)
    if not any(o.key_or_group == "sweep" for o in plain):  # a sweep file can set the task
        check_parts(cfg, dict(option.split("=", 1) for option in chosen.values()))
    known = _check_knobs(knobs, list(_names(cfg)), groups)
    fixed = [knob for knob in knobs if not knob.is_sweep_override()]
    if swept and fixed and {"-m", "--multirun"} & set(arguments):
        before = _composed([chosen[o.input_line] for o in plain if o.input_line in chosen and o not in swept], conf)
        _check_before_sweep([knob for knob in fixed if knob.key_or_group in known and knob.key_or_group not in set(_names(before))], swept)


def _check_options(override: Override, conf: Path) -> str:
    """Check that all values of a group override exist; returns the first."""
    folder = conf / override.key_or_group
    options = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    wanted = override.value()
    if isinstance(wanted, Glob):
        values = wanted.filter([option for option in options if "/" not in option])  # Hydra's glob does not match subfolders
        if not values:
            raise ValueError(f"no option of {override.key_or_group} matches {override.input_line}. The options are: {', '.join(options)}")
    else:
        values = [str(v) for v in override.sweep_string_iterator()] if override.is_sweep_override() else [str(wanted)]
    for value in values:
        if value not in [*options, "None", "null"]:
            raise ValueError(
                f"{override.key_or_group}={value} is not an option{_nearest(value, options)} The options are: {', '.join(options)}"
            )
    return values[0] if values[0] != "None" else "null"


def _check_knobs(knobs: list[Override], known: list[str], groups: set[str]) -> list[str]:
    """Check that every knob is a known name; returns the known names."""
    for knob in knobs:
        name = knob.key_or_group
        if name not in known:
            group = name.split(".")[0]
            needs = f"; {group} needs task={TASK_OF[group]}." if group in TASK_OF else _nearest(name, [*known, *groups])
            raise ValueError(f"{name} is neither a knob nor a config group{needs} {ALL_KNOBS}")
    return known


def _check_before_sweep(knobs: list[Override], swept: list[Override]) -> None:
    """Check that no knob with a single value belongs to a swept group, because Hydra sets such a knob before the sweep."""
    for knob in knobs:
        name, value = knob.input_line.split("=", 1)
        raise ValueError(
            f"{knob.input_line} is set before the sweep over {' and '.join(o.key_or_group for o in swept)}, without a {name} yet; "
            f'write "{name}=choice({value})", or set the group that has it to one option ({name.split(".")[0]}=...)'
        )


def _composed(chosen: list[str], conf: Path) -> DictConfig:
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return compose("config", overrides=chosen)


def _names(cfg: DictConfig) -> Iterator[str]:
    """Dotted names of all nodes and leaves."""
    nodes = [("", OmegaConf.to_container(cfg, resolve=False))]
    while nodes:
        prefix, node = nodes.pop()
        for key, value in node.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                nodes.append((f"{prefix}{key}.", value))


def _nearest(name: str, options: list[str]) -> str:
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if not near:
        tails = {option.rsplit(".", 1)[-1]: option for option in options}
        near = [tails[tail] for tail in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else "."
