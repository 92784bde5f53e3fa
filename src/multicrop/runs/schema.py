"""Writes config/knobs.json: what each knob of conf/ may be, from the signatures of the functions that its files name (`make schema`)."""

import inspect
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from annotated_types import Interval, Len
from hydra.utils import get_object

from multicrop.config import CONF
from multicrop.config.knobs import FILE
from multicrop.config.options import option_content
from multicrop.config.ranges import Count, Fraction, KnobsOf, Matching, OneOf, Positive, Range, Seed, Template
from multicrop.runs.settings import Compute

SIMPLE = {int: "int", float: "float", str: "str", bool: "bool", Any: "any", Path: "str"}
Pictures = Annotated[int, Interval(ge=0, le=1000)]
RESERVED = {"_target_", "_partial_", "facts"}  # keys of a node that are no arguments
PASSED = {"logit_scale", "class_keys"}  # arguments that a run passes
Schema = dict[str, Any]  # as pydantic_core.SchemaValidator takes it


class RunKnobs(TypedDict):
    """The top level of conf/config.yaml."""

    seed: Seed
    crop_seed: Seed
    classes: Literal["all", "base", "new"]
    ood: str | None
    ood_knobs: Mapping[str, Any] | None
    split: Literal["test", "validation"]
    bank: Literal["disk", "off"]
    on_unreadable: Literal["skip", "raise"]
    pictures: Pictures
    examples: Pictures
    image: Any
    rerun: bool
    record: str | None
    logits: Literal["top", "all"]
    limit: Count | None


class Paths(TypedDict):
    """The group ``paths``."""

    cache: str
    output: str
    data: str
    local: str
    local_gb: Positive


class TaskKnobs(TypedDict):
    """What every task may read beside the knobs of its builder."""

    name: str
    fusion_weight: NotRequired[Fraction]
    splits: NotRequired[list[Literal["train", "validation", "test"]]]
    beside: NotRequired[list[str] | None]


class Facts(TypedDict):
    """What a data set, a model or an aggregator says to other parts of a run, and to its record."""

    crop_side: Range
    description_prompt: str | None
    template: Template | None
    description_set: str | None
    fusion_weight: Fraction
    beside: list[str]
    training_data: list[str] | Literal["not published"] | None
    origin: dict[str, Any]


SECTIONS: dict[str, Any] = {
    "": RunKnobs,
    "paths": Paths,
    "trainer": Compute,
    "task": TaskKnobs,
    **dict.fromkeys(("dataset.facts", "model.facts", "aggregator.facts"), Facts),
}


def schema(conf: Path = CONF) -> dict[str, dict[str, dict[str, Schema]]]:
    """Describe the knobs of all options in conf/.

    Args:
        conf: The folder of the configuration.

    Returns:
        ``sections`` has the knobs of parts without a ``_target_``, by their place in the configuration; ``targets`` those of each function
        or class that a file names. A knob's value is a schema of pydantic_core.
    """
    used: dict[str, set[str]] = {}
    for path in sorted(path for path in conf.glob("*/**/*.yaml") if "hydra" not in path.parts):
        for node in _nodes(option_content(path)):
            used.setdefault(node["_target_"], set()).update(node)
    targets = {target: knobs_of(get_object(target), keys) for target, keys in sorted(used.items())}
    return {"sections": {place: knobs_of(source) for place, source in SECTIONS.items()}, "targets": targets}


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """All mappings with a ``_target_``."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for child in node.values():
            yield from _nodes(child)


def knobs_of(source: Any, keys: set[str] = frozenset()) -> dict[str, Schema]:  # type: ignore[assignment]
    """The schema of each knob of a function, class, dataclass or TypedDict.

    Args:
        source: What declares the knobs.
        keys: Names that a file sets, which may be positional parameters, or take their type from ``**knobs``.
    """
    if is_dataclass(source) or is_typeddict(source):
        return {name: schema_of(hint) for name, hint in get_type_hints(source, include_extras=True).items()}
    function = source.__init__ if inspect.isclass(source) else source
    hints = _parameter_hints(function)
    found: dict[str, Schema] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, Any)
        if declared := [source for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, KnobsOf) for source in mark.sources]:
            for further in declared:
                found |= knobs_of(further)
        elif parameter.kind is parameter.VAR_KEYWORD:
            found |= {key: schema_of(hint) for key in sorted(keys - set(hints) - RESERVED)}
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


def written(content: Mapping[str, Any]) -> str:
    """The text of knobs.json: one line per knob."""
    lines = []
    for part, places in content.items():
        inner = [
            _block(f'  "{place}"', [f'   "{name}": {json.dumps(one)}' for name, one in knobs.items()]) for place, knobs in places.items()
        ]
        lines.append(_block(f' "{part}"', inner))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _block(head: str, lines: Sequence[str]) -> str:
    indent = head[: len(head) - len(head.lstrip())]
    return f"{head}: {{\n" + ",\n".join(lines) + f"\n{indent}}}" if lines else f"{head}: {{}}"


if __name__ == "__main__":
    FILE.write_text(written(schema()), encoding="utf-8")
