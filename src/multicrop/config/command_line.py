"""Checks of the command line before Hydra composes it: names, with similar ones, and values."""

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multicrop.config.entry_points import components
from multicrop.config.experiments import registered_options
from multicrop.config.job import TASK_OF
from multicrop.config.knobs import check_values
from multicrop.config.options import groups_in, option_files, own_folder
from multicrop.config.overrides import ALL_KNOBS, changed, names_in, nearest, parsed

SWEEPS = ("sweep", "protocol")  # config groups whose files are sweeps
CHECKED = 50  # values of a sweep; each job checks its own


def check_parts(cfg: Mapping[str, Any] | DictConfig, options: Mapping[str, str]) -> None:
    """Check that the task reads the chosen adapter or method.

    Args:
        cfg: The composed configuration.
        options: Option per config group, for the message.

    Raises:
        ValueError: If an adapter or a method is chosen that the task does not read.
    """
    for group, task in TASK_OF.items():
        if cfg.get(group) is not None and cfg["task"]["name"] != task:
            raise ValueError(
                f"{group}={options.get(group, '...')} needs task={task}, got task={cfg['task']['name']}: "
                f"add task={task}, or remove {group}=... (a sweep over tasks cannot have {group}=...)"
            )


def check_overrides(arguments: list[str], conf: Path) -> None:
    """Check the command line before Hydra composes it.

    Hydra checks its own flags and overrides, and deleted or appended groups.

    Args:
        arguments: The command line without the program's name; the folder of ``--config-dir`` lies over ``conf``.
        conf: Folder of the configuration.

    Raises:
        ValueError: If an override cannot be read, an option or knob is unknown (the message suggests similar names), a value has another
            type or is out of range, or the task does not read a chosen part.
    """
    overrides = [override for override in parsed(arguments) if not override.key_or_group.startswith("hydra")]
    own = own_folder(arguments, conf)
    folders = (conf,) if own is None else (conf, own)
    groups = groups_in(folders)
    plain = [o for o in overrides if o.type == OverrideType.CHANGE]
    chosen = {o.input_line: f"{o.key_or_group}={_check_options(o, folders)}" for o in plain if o.key_or_group in groups}
    swept = [o for o in plain if o.key_or_group in groups and o.is_sweep_override()]
    knobs = [o for o in plain if o.key_or_group not in groups]
    if GlobalHydra.instance().is_initialized() or not (len(overrides) > len(plain) or knobs or _may_lack(chosen.values(), folders)):
        return
    cfg, multirun = _composed(tuple(chosen.values()), folders)
    multirun = multirun or bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments))
    if not any(o.key_or_group in SWEEPS for o in plain):  # a file of these can set the task
        check_parts(cfg, dict(option.split("=", 1) for option in chosen.values()))
    _check_knobs(knobs, list(names_in(cfg)), groups)
    fixed = [knob for knob in knobs if not knob.is_sweep_override()]
    if swept and fixed and multirun:
        before, _ = _composed(tuple(chosen[o.input_line] for o in plain if o.input_line in chosen and o not in swept), folders)
        _check_before_sweep([knob for knob in fixed if knob.key_or_group not in set(names_in(before))], swept)
    if not multirun:
        _check_single(plain)
    added = [o for o in overrides if o.type in (OverrideType.ADD, OverrideType.FORCE_ADD) and not {"@", "/"} & set(o.input_line)]
    _check_values(cfg, fixed + added, [o for o in knobs if o not in fixed])


def _may_lack(chosen: Iterable[str], folders: tuple[Path, ...]) -> bool:
    """Whether options need more than a place in conf/: a task that reads them, a GPU, a value."""
    for group, option in (choice.split("=", 1) for choice in chosen):
        file = option_files(group, folders).get(option)
        incomplete = "???" in file.read_text(encoding="utf-8") if file else option in components(group)
        if group in (*TASK_OF, "trainer", *SWEEPS) or incomplete:
            return True
    return False


def _check_single(overrides: list[Override]) -> None:
    """Check that nothing is swept, outside a sweep."""
    for override in overrides:
        if override.is_sweep_override():
            name, value = override.input_line.split("=", 1)
            raise ValueError(
                f"{override.input_line} holds several values. Add -m for a sweep over them, or quote one text: '{name}=\"{value}\"'"
            )


def _check_values(base: DictConfig, fixed: list[Override], swept: list[Override]) -> None:
    """Check the values of knobs, of swept ones one after the other; what depends on them with the first value, and in the jobs."""
    cfg = changed(base, fixed)
    check_values(cfg, base, first=[override.key_or_group for override in fixed])
    for override in swept:
        for number, value in enumerate(_values(override)):
            check_values(changed(cfg, [value]), base, first=[override.key_or_group], others=number == 0)


def _values(override: Override) -> list[Override]:
    """The overrides that a sweep over one knob makes, or those of the ends of an interval."""
    parser, name, values = OverridesParser.create(), override.key_or_group, override.value()
    if isinstance(values, IntervalSweep):
        return [parser.parse_override(f"{name}={end}") for end in (values.start, values.end)]
    return [parser.parse_override(f"{name}={value}") for value in islice(override.sweep_string_iterator(), CHECKED)]


def _check_options(override: Override, folders: tuple[Path, ...]) -> str:
    """Check that all values of a group override exist; returns the first."""
    options = list(option_files(override.key_or_group, folders))
    options += [*registered_options(override.key_or_group), *components(override.key_or_group)]
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
                f"{override.key_or_group}={value} is not an option{nearest(value, options)} The options are: {', '.join(options)}"
            )
    return values[0] if values[0] != "None" else "null"


def _check_knobs(knobs: list[Override], known: list[str], groups: set[str]) -> None:
    """Check that every knob is a known name."""
    for knob in knobs:
        name = knob.key_or_group
        if name not in known:
            group = name.split(".")[0]
            needs = f"; {group} needs task={TASK_OF[group]}." if group in TASK_OF else nearest(name, [*known, *groups])
            raise ValueError(f"{name} is neither a knob nor a config group{needs} {ALL_KNOBS}")


def _check_before_sweep(knobs: list[Override], swept: list[Override]) -> None:
    """Check that no knob with a single value belongs to a swept group, because Hydra sets such a knob before the sweep."""
    for knob in knobs:
        name, value = knob.input_line.split("=", 1)
        raise ValueError(
            f"{knob.input_line} is set before the sweep over {' and '.join(o.key_or_group for o in swept)}, without a {name} yet; "
            f'write "{name}=choice({value})", or set the group that has it to one option ({name.split(".")[0]}=...)'
        )


@cache
def _composed(chosen: tuple[str, ...], folders: tuple[Path, ...]) -> tuple[DictConfig, bool]:
    """The configuration of some options, not to be changed, and whether it asks for a sweep itself."""
    own = [f"hydra.searchpath={[f'file://{folder}' for folder in folders[1:]]}"] if folders[1:] else []
    with initialize_config_dir(str(folders[0].resolve()), version_base="1.3"):
        try:
            cfg = compose("config", overrides=[*own, *chosen], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(f"{' '.join(chosen)} cannot be composed: {error}") from None
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), cfg.hydra.mode == RunMode.MULTIRUN
