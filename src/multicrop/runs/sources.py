"""The source files of what a configuration names outside this package, such as a crop policy or an aggregator of the user's own."""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from hydra.utils import get_object

from multicrop.config import PACKAGE
from multicrop.config.entry_points import component_packages
from multicrop.files import file_hash

INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def sources_of(values: object) -> dict[str, str]:
    """Hash the source files of the functions and classes that some configuration names.

    Args:
        values: A node of the configuration; every ``_target_`` below it counts.

    Returns:
        A hash of the file per module: the modules of the targets, and the modules that these import of the user's own or of installed
        packages that declare components. Modules of this package are left out, and so are other installed ones that are no target.
    """
    found: dict[str, str] = {}
    for target in _targets(values):
        _add(str(getattr(get_object(target), "__module__", None)), found, installed=True)
    return found


def _targets(node: object) -> Iterator[str]:
    """The names of the targets below a node, without those of this package."""
    children = list(node.values()) if isinstance(node, Mapping) else list(node) if isinstance(node, list) else []
    if isinstance(node, Mapping) and "_target_" in node:
        names = [node["_target_"], *([node["path"]] if str(node["_target_"]).startswith("hydra.utils.get_") else [])]
        yield from (name for name in map(str, names) if name.partition(".")[0] not in (PACKAGE.name, "hydra"))
    for child in children:
        yield from _targets(child)


def _add(name: str, found: dict[str, str], *, installed: bool = False) -> None:
    """Add a module, and those that it imports, except this package's and, unless asked for, installed ones without components."""
    path = _file(name)
    own = installed or name.partition(".")[0] in component_packages()
    if name in found or path is None or (not own and any(path.is_relative_to(place) for place in INSTALLED)):
        return
    found[name] = file_hash(path)
    if path.suffix == ".py":
        for imported in _imports(path, name):
            _add(imported, found)


def _file(name: str) -> Path | None:
    """The file of a module outside this package; None for this package's modules and for names that are no module with a file."""
    try:
        loaded = sys.modules.get(name)
        spec = None if loaded else importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    path = Path(getattr(loaded, "__file__", None) or getattr(spec, "origin", None) or "").resolve()
    return None if not path.is_file() or path.is_relative_to(PACKAGE) else path


def _imports(path: Path, name: str) -> Iterator[str]:
    """The modules that a file may import, at its top or within functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))
