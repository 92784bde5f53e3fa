"""Checks the values of knobs against the signatures of the configured functions; `make schema` writes those of conf/ to knobs.json."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic_core import CoreConfig, SchemaValidator, ValidationError

from multicrop.config.signatures import foreign_knobs

FILE = Path(__file__).with_name("knobs.json")
STRICT = CoreConfig(strict=True, allow_inf_nan=False)
NO_ARGUMENTS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_", "facts"}
PLAIN = re.compile(r"[A-Za-z./][\w./-]*")  # texts that need no quotes
Schema = Mapping[str, Any]


@cache
def _schemas() -> dict[str, dict[str, dict[str, Schema]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def check_values(cfg: DictConfig, base: DictConfig | None = None, first: Iterable[str] = (), *, others: bool = True) -> None:
    """Check every knob of a composed configuration.

    Args:
        cfg: The configuration.
        base: The configuration before knobs were set, whose values the message proposes; None: `cfg`.
        first: Knobs that are checked before the others: those of the command line, on whose values others depend.
        others: Whether the others are checked too.

    Raises:
        ValueError: If a value has another type or lies outside its range, a required one is missing, or a part has no such knob.
    """
    schemas = dict(schemas_of(cfg))
    chosen = [name for name in schemas for knob in first if knob == name or knob.startswith(f"{name}.")]
    for name in dict.fromkeys([*chosen, *(schemas if others else ())]):
        found, value = _value(cfg, name)
        if found:
            check_value(name, value, schemas[name], base if base is not None else cfg)


def check_value(name: str, value: Any, schema: Schema, base: DictConfig) -> None:
    """Raise ValueError, which says what is expected and proposes a value, where a value does not fit its schema."""
    problem = _problem(value, schema)
    if problem is None:
        return
    place, got, wanted = problem
    knob = ".".join([name, *(str(key) for key in place if isinstance(key, str))])
    where = "".join(f"[{key}]" for key in place if isinstance(key, int))
    found, usual = _value(base, knob)
    if where and (not isinstance(usual, list) or got in usual):
        usual = [example(wanted)] * (len(usual) if isinstance(usual, list) else 1)
    elif not where and (not found or _problem(usual, wanted) is not None):
        usual = example(wanted)
    if wanted["type"] == "str" and isinstance(got, int | float):
        usual = str(got).lower()  # a name that reads as a number
    choices = wanted.get("schema", wanted).get("expected", ()) if not where else ()
    near = difflib.get_close_matches(str(got), choices, n=1, cutoff=0.8)
    raise ValueError(f"{knob}{where} is {words(wanted)}; got {shown(got)}. Write {assigned(knob, near[0] if near else usual)}")


def schemas_of(cfg: DictConfig) -> Iterator[tuple[str, Schema]]:
    """The schema of each knob of a composed configuration, by the knob's name.

    Raises:
        ValueError: If a part is given a knob that it does not have, or one of another package lacks a value.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    for place, node in _nodes("", raw):
        target = node.get("_target_")
        declared = _of_target(target, node.keys())
        known = {**_schemas()["sections"].get(place, {}), **(declared or {})}
        if place == "task":
            for role in ("run", "build"):
                known = known | _schemas()["targets"].get((node.get(role) or {}).get("_target_"), {})
        prefix = f"{place}." if place else ""
        yield from ((f"{prefix}{key}", known[key]) for key in node if key in known)
        for key, value in node.items():
            if target and target not in _schemas()["targets"] and value == "???":
                raise ValueError(f"{prefix}{key} has no value, and this choice needs one. Write {prefix}{key}=VALUE")
            if declared is not None and key not in known and key not in NO_ARGUMENTS and not isinstance(value, dict):
                raise ValueError(f"{prefix}{key} is no knob of {place} here; its knobs are {', '.join(sorted(known)) or 'none'}. Remove it")


def _of_target(target: str | None, keys: Set[str]) -> Mapping[str, Schema] | None:
    """The schema of each knob of a configured function; None where there is none."""
    known = _schemas()["targets"].get(target or "")
    return foreign_knobs(target, keys) if known is None and target else known


def _nodes(place: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All mappings and their places, those that others refer to (facts, top level) first."""
    if isinstance(node, dict):
        yield place, node
        for key in sorted(node, key=lambda key: (str(key) != "facts", str(key) != "paths", str(key) != "dataset")):
            yield from _nodes(f"{place}.{key}".lstrip("."), node[key])


def _value(cfg: DictConfig, name: str) -> tuple[bool, Any]:
    """Whether a knob has a value outside a Hydra job, and the value; raises ValueError where it must be set."""
    try:
        value = OmegaConf.select(cfg, name, throw_on_missing=True)
        return True, OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value
    except MissingMandatoryValue:
        raise ValueError(f"{name} has no value, and this choice needs one. Write {name}=PATH") from None
    except OmegaConfBaseException:  # refers to the job, which has not begun
        return False, None


def _problem(value: Any, schema: Schema) -> tuple[tuple[str | int, ...], Any, Schema] | None:
    """Where a value does not fit its schema: place within it, value there, and schema there."""
    try:
        _validator(json.dumps(schema)).validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        return _descended(value, schema, found["loc"])
    return None


@cache
def _validator(schema: str) -> SchemaValidator:
    return SchemaValidator(json.loads(schema), STRICT)


def _descended(value: Any, schema: Schema, loc: tuple[int | str, ...]) -> tuple[tuple[str | int, ...], Any, Schema]:
    """Follow a place into nested values as far as the schema says what is there."""
    place: list[str | int] = []
    for key in loc:
        outer = schema["schema"] if schema["type"] == "nullable" else schema
        inner = {"list": "items_schema", "dict": "values_schema"}.get(outer["type"])
        if not (isinstance(value, list) or (isinstance(value, dict) and key in value)):
            break  # a key that is missing
        if outer["type"] == "typed-dict" and key in outer["fields"]:
            schema = outer["fields"][key]["schema"]
        elif inner:
            schema = outer[inner]
        else:
            break
        value = value[key]
        place.append(key)
    return tuple(place), value, schema


def words_of(target: str, keys: Set[str]) -> dict[str, str]:
    """What each knob of a configured function may be, in words."""
    return {name: words(schema) for name, schema in (_of_target(target, keys) or {}).items()}


def words(schema: Schema) -> str:
    """What a value is, for a message: `a whole number from 1 to 4096`."""
    kind = schema["type"]
    if kind == "nullable":
        return f"{words(schema['schema'])}, or null"
    if kind == "literal":
        return f"one of {', '.join(schema['expected'])}"
    if kind == "union":
        return " or ".join(words(choice) for choice in schema["choices"])
    if kind == "list":
        count = f" of {schema['min_length']}" if "min_length" in schema else ""
        return f"a list{count}, each {words(schema['items_schema'])}"
    if kind == "dict":
        return f"a mapping of names, each to {words(schema['values_schema'])}"
    if kind == "typed-dict":
        return f"a mapping with {', '.join(schema['fields'])}"
    if kind in ("int", "float"):
        return f"{'a whole number' if kind == 'int' else 'a number'}{_bounds(schema)}"
    return schema.get("metadata", {}).get("words") or {"bool": "true or false", "str": "a text"}.get(kind, "a value")


def _bounds(schema: Schema) -> str:
    if "ge" in schema and "le" in schema:
        return f" from {schema['ge']} to {schema['le']}"
    low = f" above {schema['gt']}" if "gt" in schema else f" of {schema['ge']} or more" if "ge" in schema else ""
    high = f" below {schema['lt']}" if "lt" in schema else f" at most {schema['le']}" if "le" in schema else ""
    return f"{low}{' and' if low and high else ''}{high}"


def example(schema: Schema) -> Any:
    """A value that fits a schema."""
    kind = schema["type"]
    if kind == "literal":
        return schema["expected"][0]
    if kind == "union":
        return example(schema["choices"][0])
    if kind == "int":
        return schema.get("ge", 0)
    if kind == "float":
        low, high = schema.get("gt", schema.get("ge", 0)), schema.get("lt", schema.get("le", 1))
        return (low + min(high, low + 1)) / 2
    if kind == "list":
        return [example(schema["items_schema"])] * schema.get("min_length", 1)
    if kind == "typed-dict":
        return {name: example(field["schema"]) for name, field in schema["fields"].items()}
    if kind == "str":
        return "{}" if "{}" in schema.get("metadata", {}).get("words", "") else "x"
    return {"bool": True, "dict": {}}.get(kind)


def shown(value: Any) -> str:
    """A value as it is written on the command line; a text in quotes."""
    if isinstance(value, str):
        return f"'{value}'"
    return json.dumps(value) if isinstance(value, bool | None | list | dict) else str(value)


def assigned(knob: str, value: Any) -> str:
    """The override that sets a knob, as a shell takes it."""
    if isinstance(value, str) and PLAIN.fullmatch(value) and value not in ("true", "false", "null", "nan", "inf"):
        return f"{knob}={value}"
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        text = text.replace('"', "").replace(" ", "")
    return f"{knob}={text}" if not set(text) & set(" {}\"'()[]$&;,") else f"'{knob}={text}'"
