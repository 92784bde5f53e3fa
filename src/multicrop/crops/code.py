"""A hash of the code of a function that this package does not hold, so that an edited crop policy is another policy."""

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from multicrop.config import PACKAGE
from multicrop.config.entry_points import component_packages
from multicrop.files import content_hash

LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))  # the last may hold the others
PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...))


def code_hash(function: Callable[..., Any]) -> str:
    """A hash of what a function runs: bytecode and constants of its own, and of the functions and constants that it names.

    Bytecode, unlike source, is what this process runs, even if the file has been edited since it was imported, and every function has it.
    Another version of Python gives another hash. Functions of this package, whose files a bank's identity holds, and of installed libraries
    that declare no component are left out.

    Args:
        function: A crop function.

    Returns:
        The hash; empty for a function of this package.
    """
    parts = list(_parts(function, seen=set()))
    return content_hash(*parts) if parts else ""


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    """The code of a function and of what it names; the text of a constant; nothing of anything else."""
    if isinstance(value, MethodType):
        value = value.__func__
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, frozenset):
        yield from ("frozenset", *sorted(part for item in value for part in _parts(item, seen)))  # its order differs between processes
    elif isinstance(value, tuple):
        yield "tuple"
        for item in value:
            yield from _parts(item, seen)
    elif isinstance(value, CodeType):
        yield f"{value.co_code.hex()} {value.co_names} {value.co_varnames}"
        yield from _parts(value.co_consts, seen)
    elif isinstance(value, FunctionType) and id(value) not in seen:
        seen.add(id(value))
        yield from _of_function(value, seen)


def _of_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    """The code of a function, its defaults, its closure, and what it names among the globals; of a library's wrapper what it wraps."""
    if _is_elsewhere(Path(function.__code__.co_filename)):
        if wrapped := getattr(function, "__wrapped__", None):
            yield from _parts(wrapped, seen)
        return
    yield from _parts(function.__code__, seen)
    yield from _parts((function.__defaults__, tuple(sorted((function.__kwdefaults__ or {}).items()))), seen)
    for cell in function.__closure__ or ():
        yield from _parts(_content(cell), seen)
    names = sorted(_names(function.__code__))
    for named in (function.__globals__[name] for name in names if name in function.__globals__):
        yield from _parts(named, seen)
        if isinstance(named, ModuleType):
            for member in (vars(named).get(name) for name in names):
                yield from _parts(member, seen) if isinstance(member, FunctionType) else ()


def _is_elsewhere(file: Path) -> bool:
    """Whether a file is one of this package, of Python, or of an installed package that declares no component."""
    if file.is_relative_to(PACKAGE):
        return True
    place = next((place for place in LIBRARIES if file.is_relative_to(place)), None)
    return place is not None and Path(file.relative_to(place).parts[0]).stem not in component_packages()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)))
