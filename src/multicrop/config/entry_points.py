"""Components that installed packages declare as entry points, such as `multicrop.crops`: options beside those of conf/."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from multicrop.config.job import CONF
from multicrop.config.options import option_files
from multicrop.config.signatures import PASSED

IN_A_RUN = ("crop", "aggregator", "adapter", "method")  # groups whose components take further arguments during a run
GROUPS = (*IN_A_RUN, "dataset", "model")
PLAIN = (int, float, str, bool, type(None))
REQUIRED = "???"  # OmegaConf's mark of a value that the command line must set
FACTS: dict[str, dict[str, Any]] = {  # of a component that states none
    "dataset": {"crop_side": [0.5, 0.9], "description_prompt": "grammar", "template": None, "description_set": None},
    "model": {"template": "a photo of a {}."},
}


@dataclass(frozen=True)
class Component:
    """A component that an installed package declares.

    Attributes:
        group: The config group, such as ``crop``.
        entry: The entry point: a function or class, or a mapping that holds what a file in conf/ would hold.
    """

    group: str
    entry: EntryPoint

    @property
    def package(self) -> str:
        """Name and version of the package."""
        return f"{self.entry.dist.name} {self.entry.dist.version}" if self.entry.dist else self.entry.module

    @property
    def content(self) -> dict[str, Any]:
        """The option: its target, its knobs with their defaults, its facts.

        Raises:
            ValueError: If the package cannot be imported, or the entry point names something else.
        """
        try:
            declared = self.entry.load()
        except Exception as error:
            raise ValueError(
                f"{self.group}={self.entry.name}: {self.entry.value} of the package {self.package} cannot be imported "
                f"({type(error).__name__}: {error}). Repair the package, or uninstall it"
            ) from error
        facts = {"facts": FACTS[self.group]} if self.group in FACTS else {}
        if isinstance(declared, Mapping) and "_target_" in declared:
            return {**facts, **declared}
        if not callable(declared):
            raise ValueError(
                f"{self.group}={self.entry.name}: {self.entry.value} of the package {self.package} is a function, a class, or a mapping "
                f"with _target_; got {type(declared).__name__}. Change the entry point"
            )
        partial = {"_partial_": True} if self.group in IN_A_RUN else {}
        return {"_target_": self.entry.value.replace(":", "."), **partial, **self._knobs_of(declared), **facts}

    def _knobs_of(self, declared: Callable[..., Any]) -> dict[str, Any]:
        """The parameters that a file can set, with their defaults; ``???`` where a keyword that no run passes has none."""
        found = {}
        for name, parameter in inspect.signature(declared).parameters.items():
            if name in PASSED or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is parameter.empty:
                passed = self.group in ("adapter", "method") or parameter.kind is not parameter.KEYWORD_ONLY
                found |= {} if passed else {name: REQUIRED}
            elif _is_plain(parameter.default):
                found[name] = parameter.default
        return found


def components(group: str) -> dict[str, Component]:
    """The components of a config group that installed packages declare, by name.

    Args:
        group: The config group; ``crop`` reads the entry points of ``multicrop.crops``.

    Raises:
        ValueError: If a name is one of conf/, or of two packages.
    """
    found: dict[str, Component] = {}
    for component in _declared().get(group, ()):
        name = component.entry.name
        taken = "multicrop" if name in option_files(group, [CONF]) else found[name].package if name in found else None
        if taken:
            raise ValueError(
                f"the package {component.package} declares {group}={name}, a name that {taken} has. Rename the entry point, or uninstall it"
            )
        found[name] = component
    return dict(sorted(found.items()))


def component_packages() -> frozenset[str]:
    """The top-level modules of all declared components."""
    return frozenset(one.entry.module.partition(".")[0] for declared in _declared().values() for one in declared)


@cache
def _declared() -> dict[str, list[Component]]:
    """All declared components by config group; installed packages are read once per process."""
    installed = entry_points()
    found = {group: [Component(group, entry) for entry in installed.select(group=f"multicrop.{group}s")] for group in GROUPS}
    return {group: declared for group, declared in found.items() if declared}


def _is_plain(value: Any) -> bool:
    """Whether a configuration file can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return isinstance(value, PLAIN) or (isinstance(value, list | tuple) and all(_is_plain(one) for one in value))
