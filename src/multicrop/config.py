"""Configuration helpers: resolvers, and a check of the command line that names what the user may have meant."""

import difflib
import os
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
ALL_KNOBS = "All knobs of an experiment: python run.py --cfg job"


def register_resolvers() -> None:
    """`${package:NAME}` is a file or folder of this package, wherever it is installed; `${in_sweep:A,B}` is A in a job of a sweep, else B;
    `${either:A,B}` is the first that is not null.
    """
    OmegaConf.register_new_resolver("package", lambda name: str(PACKAGE / name), replace=True)
    OmegaConf.register_new_resolver("either", lambda *values: next((v for v in values if v is not None), None), replace=True)
    OmegaConf.register_new_resolver("in_sweep", lambda yes, no: yes if in_sweep() else no, replace=True)


def in_sweep() -> bool:
    """Whether this is a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def choices() -> dict[str, str]:
    """The option chosen in each group, as the user wrote it; empty outside Hydra."""
    chosen = dict(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}
    return {group: option for group, option in chosen.items() if not group.startswith("hydra")}


def threads_of_job(available: int) -> int:
    """How many of the available torch threads a job takes: those that its launcher reserves, or its share where jobs run side by side.

    A launcher may have divided them already (joblib does), and a process may run several jobs, so the share is of the processors.
    """
    launcher = HydraConfig.get().launcher if in_sweep() else {}
    if "cpus_per_task" in launcher:  # submitit, which would start all jobs at once
        return launcher.cpus_per_task or 1
    wanted = int(launcher.get("n_jobs") or 1)
    if wanted == 1:
        return available
    cores = os.cpu_count() or 1
    return min(available, max(1, cores // (wanted if wanted > 0 else cores + 1 + wanted)))


def in_parallel() -> bool:
    """Whether this is a job of a sweep whose launcher runs jobs in processes of their own."""
    return in_sweep() and not HydraConfig.get().launcher._target_.startswith("hydra._internal")


def sweeper_takes_failures() -> bool:
    """Whether the sweeper of this job counts failures itself and takes no NaN, as Optuna's does."""
    return in_sweep() and "max_failure_rate" in HydraConfig.get().sweeper


def without(node: DictConfig, *keys: str) -> DictConfig:
    """The node, interpolations resolved, less some keys: what one group says for another to read is no constructor argument."""
    node = OmegaConf.create(OmegaConf.to_container(node, resolve=True))
    for key in keys:
        node.pop(key, None)
    return node


def check_overrides(arguments: list[str], conf: Path) -> None:
    """Raise ValueError for an unknown group option or knob among the overrides, with the nearest names.

    Hydra's own flags and anything it can do beyond `name=value` (appending, deleting) are left to Hydra.
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
    if not knobs or GlobalHydra.instance().is_initialized():
        return
    known = _check_knobs(knobs, list(chosen.values()), conf, groups)
    fixed = [knob for knob in knobs if not knob.is_sweep_override()]
    if swept and fixed and {"-m", "--multirun"} & set(arguments):
        before = _known([chosen[o.input_line] for o in plain if o.input_line in chosen and o not in swept], conf)
        _check_before_sweep([knob for knob in fixed if knob.key_or_group in known and knob.key_or_group not in before], swept)


def _check_options(override: Override, conf: Path) -> str:
    """All values of a group override exist; returns the first."""
    folder = conf / override.key_or_group
    options = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    given = override.value()
    if isinstance(given, Glob):
        values = given.filter([option for option in options if "/" not in option])  # Hydra's glob sees no subfolder
        if not values:
            raise ValueError(f"no option of {override.key_or_group} matches {override.input_line}. The options are: {', '.join(options)}")
    else:
        values = [str(v) for v in override.sweep_string_iterator()] if override.is_sweep_override() else [str(given)]
    for value in values:
        if value not in [*options, "None", "null"]:
            raise ValueError(
                f"{override.key_or_group}={value} is not an option{_nearest(value, options)} The options are: {', '.join(options)}"
            )
    return values[0] if values[0] != "None" else "null"


def _check_knobs(knobs: list[Override], chosen: list[str], conf: Path, groups: set[str]) -> list[str]:
    """Every knob exists under the groups chosen; returns the names of all that exist."""
    known = _known(chosen, conf)
    for knob in knobs:
        name = knob.key_or_group
        if name not in known and not any(key.startswith(f"{name}.") for key in known):
            raise ValueError(f"{name} is neither a knob nor a config group{_nearest(name, [*known, *groups])} {ALL_KNOBS}")
    return known


def _check_before_sweep(knobs: list[Override], swept: list[Override]) -> None:
    """Hydra sets a knob with one value before it sweeps, so that a group that is swept may not bring it."""
    for knob in knobs:
        name, value = knob.input_line.split("=", 1)
        raise ValueError(
            f"{knob.input_line} is set before the sweep over {' and '.join(o.key_or_group for o in swept)}, where there is no {name} yet; "
            f'write "{name}=choice({value})", or choose the group that has it beside the sweep ({name.split(".")[0]}=...)'
        )


def _known(chosen: list[str], conf: Path) -> list[str]:
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        return _keys(compose("config", overrides=chosen))


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of all leaves and nodes."""
    keys = []
    for key in cfg:
        name = f"{prefix}{key}"
        keys.append(name)
        node = OmegaConf.to_container(cfg, resolve=False)[key]
        if isinstance(node, dict):
            keys += _keys(cfg._get_node(key), f"{name}.")
    return keys


def _nearest(name: str, options: list[str]) -> str:
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if not near:
        tails = {option.rsplit(".", 1)[-1]: option for option in options}
        near = [tails[tail] for tail in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else "."
