"""Writes config/knobs.json: what each knob of conf/ may be, from the signatures of the functions that its files name (`make schema`)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from annotated_types import Interval
from hydra.utils import get_object

from multicrop.config import CONF
from multicrop.config.knobs import FILE
from multicrop.config.options import option_content
from multicrop.config.ranges import Count, Fraction, Positive, Range, Seed, Template
from multicrop.config.signatures import Schema, knobs_of
from multicrop.files import write_text
from multicrop.runs.settings import Compute

Pictures = Annotated[int, Interval(ge=0, le=1000)]


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
    by_shard: NotRequired[bool]


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
    write_text(FILE, written(schema()))
