"""What knobs may be, from signatures: of conf/ for knobs.json (`runs/schema.py`), of other packages when one of their parts is chosen."""

import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from annotated_types import Interval, Len

from multicrop.config.ranges import KnobsOf, Matching, OneOf

INJECTED = ("text", "logit_scale", "score", "encoder", "projection")  # parts of a run that an adapter or a method may ask for by name
PASSED = {*INJECTED, "view", "class_keys"}  # parameters that a run passes by name
RESERVED = {"_target_", "_partial_", "facts"}  # keys of a node that are no arguments
SIMPLE = {int: "int", float: "float", str: "str", bool: "bool", Any: "any", Path: "str"}
Schema = dict[str, Any]  # as pydantic_core.SchemaValidator takes it


def knobs_of(source: Any, keys: Set[str] = frozenset()) -> dict[str, Schema]:
    """The schema of each knob of a function, class, dataclass or TypedDict.

    Args:
        source: What declares the knobs.
        keys: Names that a file sets, which may be positional parameters, or take their type from ``**knobs``.
    """
    if is_dataclass(source) or is_typeddict(source):
        return {name: schema_of(hint) for name, hint in get_type_hints(source, include_extras=True).items()}
    return _parameter_knobs(source.__init__ if inspect.isclass(source) else source, keys)


def foreign_knobs(target: str, keys: Set[str]) -> dict[str, Schema] | None:
    """The schema of each knob of a function or class of another package; a knob without an annotation takes any value.

    Args:
        target: Its dotted path, which is imported.
        keys: Names that a configuration sets.

    Returns:
        The schemas; None where nothing can be imported there or the signature cannot be read, which the part that uses it says.
    """
    try:
        source = pkgutil.resolve_name(target)
        return _parameter_knobs(source.__init__ if inspect.isclass(source) else source, keys)
    except (ImportError, AttributeError, NameError, TypeError, ValueError):
        return None


def _parameter_knobs(function: Callable[..., Any], keys: Set[str]) -> dict[str, Schema]:
    hints, parameters = _parameter_hints(function), inspect.signature(function).parameters
    found: dict[str, Schema] = {}
    for name, parameter in parameters.items():
        hint = hints.get(name, Any)
        if declared := [source for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, KnobsOf) for source in mark.sources]:
            for further in declared:
                found |= knobs_of(further)
        elif parameter.kind is parameter.VAR_KEYWORD:
            found |= {key: schema_of(hint) for key in sorted(keys - set(parameters) - RESERVED)}
        elif name in keys or (parameter.kind is parameter.KEYWORD_ONLY and name not in PASSED and _expressed(hint)):
            found[name] = _expressed(hint) or {"type": "any"}
    return found


def _parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of the parameters, without that of the result, whose module may not be imported; object.__init__ has no module."""
    parameters = {name: hint for name, hint in getattr(function, "__annotations__", {}).items() if name != "return"}
    module = sys.modules[getattr(function, "__module__", __name__)]
    return get_type_hints(types.SimpleNamespace(__annotations__=parameters), vars(module), include_extras=True)


def _expressed(hint: Any) -> Schema | None:
    """The schema of a type; None for a type whose values no file can hold."""
    try:
        return schema_of(hint)
    except TypeError:
        return None


def schema_of(hint: Any) -> Schema:
    """The schema of pydantic_core for a type; raises TypeError for one whose values no file can hold."""
    if hint in SIMPLE:
        return {"type": SIMPLE[hint]}
    origin, args = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        fields = {n: {"type": "typed-dict-field", "schema": schema_of(h)} for n, h in get_type_hints(hint, include_extras=True).items()}
        return {"type": "typed-dict", "fields": fields}
    if origin is Annotated:
        return _narrowed(schema_of(args[0]), args[1:])
    if origin in (Union, types.UnionType):
        return _union(args)
    if origin is Literal:
        return {"type": "literal", "expected": list(args)}
    if origin is NotRequired:
        return schema_of(args[0])
    if origin in (Sequence, list):
        return {"type": "list", "items_schema": schema_of(args[0])}
    if origin is tuple and len(set(args) - {...}) == 1:
        length = {} if ... in args else {"min_length": len(args), "max_length": len(args)}
        return {"type": "list", "items_schema": schema_of(args[0]), **length}
    if origin in (Mapping, dict):
        return {"type": "dict", "keys_schema": schema_of(args[0]), "values_schema": schema_of(args[1])}
    raise TypeError(f"{hint} is no type of a value in a configuration file")


def _union(members: Sequence[Any]) -> Schema:
    some = [member for member in members if member is not type(None) and not (member is int and float in members)]
    found = [schema_of(member) for member in some]
    choices = [one for place, one in enumerate(found) if one not in found[:place]]
    inner = choices[0] if len(choices) == 1 else {"type": "union", "choices": choices}
    return {"type": "nullable", "schema": inner} if type(None) in members else inner


def _narrowed(plain: Schema, marks: Sequence[Any]) -> Schema:
    """The schema with the bounds, choices or pattern of an Annotated type."""
    for mark in marks:
        if isinstance(mark, Interval):
            bounds = {"gt": mark.gt, "ge": mark.ge, "lt": mark.lt, "le": mark.le}
            plain |= {name: bound for name, bound in bounds.items() if bound is not None}
        elif isinstance(mark, Len):
            plain |= {"min_length": mark.min_length, "max_length": mark.max_length}
        elif isinstance(mark, OneOf):
            plain = {"type": "literal", "expected": list(mark.values)}
        elif isinstance(mark, Matching):
            plain |= {"pattern": mark.pattern, "metadata": {"words": mark.words}}
    return plain
