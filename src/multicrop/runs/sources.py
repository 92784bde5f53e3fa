"""The source files of what a configuration names outside this package, such as a crop policy or an aggregator of the user's own."""

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType

from hydra.utils import get_object

from multicrop.config import PACKAGE
from multicrop.files import file_hash

INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def sources_of(values: object) -> dict[str, str]:
    """Hash the source files of the functions and classes that some configuration names.

    Args:
        values: A node of the configuration; every ``_target_`` below it counts.

    Returns:
        A hash of the file per module: the modules of the targets, and the modules of the user's own from which these take names. Modules of
        this package are left out, and so are installed ones that are no target.
    """
    found: dict[str, str] = {}
    for target in _targets(values):
        named = get_object(target)
        module = sys.modules.get(str(getattr(named, "__module__", None)))
        if module is not None and (path := _file(module)) is not None:
            found[module.__name__] = file_hash(path)
            _add_imported(module, found)
    return found


def _targets(node: object) -> Iterator[str]:
    """The names of the targets below a node, without those of this package."""
    children = list(node.values()) if isinstance(node, Mapping) else list(node) if isinstance(node, list) else []
    if isinstance(node, Mapping) and "_target_" in node:
        names = [node["_target_"], *([node["path"]] if str(node["_target_"]).startswith("hydra.utils.get_") else [])]
        yield from (name for name in map(str, names) if name.partition(".")[0] not in (PACKAGE.name, "hydra"))
    for child in children:
        yield from _targets(child)


def _add_imported(module: ModuleType, found: dict[str, str]) -> None:
    """Add the modules of the user's own that the names of a module come from, and theirs."""
    for value in list(vars(module).values()):
        named = value.__module__ if isinstance(value, type | FunctionType) else value.__name__ if isinstance(value, ModuleType) else ""
        other = sys.modules.get(named or "")
        if other is None or other.__name__ in found or (path := _file(other)) is None:
            continue
        if not any(path.is_relative_to(place) for place in INSTALLED):
            found[other.__name__] = file_hash(path)
            _add_imported(other, found)


def _file(module: ModuleType) -> Path | None:
    """The file of a module outside this package; None for this package's and for modules without a file."""
    path = Path(getattr(module, "__file__", None) or "")
    return None if not path.is_file() or path.resolve().is_relative_to(PACKAGE) else path.resolve()
