"""The settings that `task=choose` tries: crops, aggregator with its knobs, weight of its logits, few-shot adapter."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict

from multicrop.aggregators.gate import Nats
from multicrop.compare.label_free import CRITERIA
from multicrop.config.ranges import Count, OneOf, Weight
from multicrop.runs.settings import Settings

LABELS, SCORES = ("validation", "none"), ("probability", "accuracy")
Knobs = tuple[tuple[str, Any], ...]
GLOBAL = "global"


class ChooseKnobs(TypedDict):
    """The knobs of task=choose."""

    labels: Annotated[str, OneOf(LABELS)]
    criterion: Annotated[str, OneOf(CRITERIA)]
    gate: Nats
    max_images: Count
    like_test: bool
    budget: str | None
    score: Annotated[str, OneOf(SCORES)]
    standard_errors: Weight
    repeats: Count
    folds: Count
    adapters: list[str]
    shots: Count
    few_shot: Any
    resamples: Count
    search: Any
    whole: Any
    crops: Any
    baseline: Any
    aggregators: Any


@dataclass(frozen=True)
class Crops:
    """Range of sides and number of random crops; none: the global view alone."""

    sides: tuple[float, float] | None = None
    n_crops: int = 0

    @property
    def n_views(self) -> int:
        """Views per image, the global view included."""
        return 1 + self.n_crops

    def __str__(self) -> str:
        low, high = self.sides or (1, 1)
        return f"{self.n_crops} crops of {low:g} to {high:g}" if self.n_crops else "global view"


@dataclass(frozen=True)
class Setting:
    """One way of looking: crops, aggregator, its knobs that differ from its file, its weight beside the global view, adapter."""

    crops: Crops
    aggregator: str
    knobs: Knobs
    fusion_weight: float
    adapter: str | None = None

    @property
    def texts(self) -> str:
        """The prompts that decide: ``label``, ``descriptions`` or ``all``."""
        return "label" if self.aggregator == GLOBAL else dict(self.knobs).get("text_set", "descriptions")

    @property
    def family(self) -> str:
        """What settings have in common that differ in sizes and weights alone."""
        views = "crops" if self.crops.n_crops else "global view"
        family = "global view" if self.aggregator == GLOBAL else f"{views}, {self.aggregator}, {self.texts}"
        return f"{family}, {self.adapter}" if self.adapter else family

    @property
    def zero_shot(self) -> "Setting":
        """The same without the adapter."""
        return replace(self, adapter=None)

    def __str__(self) -> str:
        if self.adapter:
            return f"{self.adapter} on {self.zero_shot}"
        if self.aggregator == GLOBAL:
            return "the plain global view"
        knobs = f" ({', '.join(f'{name}={value}' for name, value in self.knobs)})" if self.knobs else ""
        return f"{self.crops}, {self.aggregator}{knobs}, weight {self.fusion_weight:g}"


def settings_to_try(search: Mapping[str, Any], *, described: bool, adapters: Sequence[str] = ()) -> list[Setting]:
    """All settings in order of preference: the plain global view, then by views per image, aggregator, knobs, weight, range of sides.

    Settings with an adapter follow all others: they need labelled images.

    Args:
        search: The node ``search`` of the task.
        described: Whether every class has descriptions; without, settings that read any are left out.
        adapters: Few-shot adapters, the cheaper first.
    """
    weights = sorted(search["fusion_weight"])
    ranges = list(dict.fromkeys((float(low), float(high)) for low, high in search["sides"]))
    found = [Setting(Crops(), GLOBAL, (), 1.0)]
    found += [Setting(Crops(), name, knobs, 1.0) for name, knobs in _aggregators(search["whole"])]
    for number in sorted(search["n_crops"]):
        for (name, knobs), weight, sides in itertools.product(_aggregators(search["crops"]), weights, ranges):
            found.append(Setting(Crops(sides, number), name, knobs, weight))
    hosts = [found[0], *_hosts(search["adapted"], Crops(ranges[0], max(search["n_crops"])))] if adapters else []
    for number in sorted({host.crops.n_crops for host in hosts}):
        found += [replace(host, adapter=name) for name in adapters for host in hosts if host.crops.n_crops == number]
    return [setting for setting in found if described or setting.texts == "label"]


def _hosts(listed: Mapping[str, Mapping[str, Sequence[Any]]], crops: Crops) -> Iterator[Setting]:
    """The aggregators that adapters are fitted on, with each combination of the values of their knobs and weights."""
    for name, values in listed.items():
        for weight in values.get("fusion_weight", [1.0]):
            for _, knobs in _aggregators({name: {knob: some for knob, some in values.items() if knob != "fusion_weight"}}):
                yield Setting(crops, name, knobs, float(weight))


def with_setting(settings: Settings, setting: Setting) -> Settings:
    """The configuration of a run with this setting's crops, aggregator and fusion weight; its task stays."""
    task = settings.task
    crop = {**task["crops"], "n_crops": setting.crops.n_crops} if setting.crops.n_crops else task["whole"]
    if setting.crops.sides:
        crop = {**crop, "min_side": setting.crops.sides[0], "max_side": setting.crops.sides[1]}
    places = {"crop": "crops" if setting.crops.n_crops else "whole"}
    places["aggregator"] = "baseline" if setting.aggregator == GLOBAL else f"aggregators.{setting.aggregator}"
    places |= {"adapter": f"few_shot.{setting.adapter}"} if setting.adapter else {}
    choices = {**settings.choices, **{group: option_of(settings, group, place) for group, place in places.items()}}
    changed = {"crop": crop, "aggregator": aggregator_values(task, setting), "task": {**task, "fusion_weight": setting.fusion_weight}}
    changed |= {"adapter": task["few_shot"][setting.adapter]} if setting.adapter else {}
    return replace(settings, config={**settings.config, **changed}, choices=choices)


def aggregator_values(task: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """The values of the setting's aggregator."""
    values = task["baseline"] if setting.aggregator == GLOBAL else {**task["aggregators"][setting.aggregator], **dict(setting.knobs)}
    whole = {"prune": False} if values.get("prune") else {}  # every logit is read, for fusion by several weights and for the temperature
    return {name: value for name, value in {**values, **whole}.items() if name != "facts"}


def option_of(settings: Settings, group: str, place: str) -> str:
    """The option of a group at a place in the task's file, such as ``dnd`` at ``aggregators.dnd``."""
    values: Any = settings.task
    for name in place.split("."):
        values = values[name]
    return settings.choices.get(f"{group}@task.{place}") or str(values["_target_"]).rsplit(".", 1)[-1]


def _aggregators(listed: Mapping[str, Mapping[str, Sequence[Any]]]) -> Iterator[tuple[str, Knobs]]:
    """Aggregators with each combination of the values of their knobs, in the order of the file."""
    for name, knobs in listed.items():
        for values in itertools.product(*knobs.values()):
            yield name, tuple(zip(knobs, values, strict=True))
