"""chosen.yaml: the chosen setting as a Hydra experiment, which ``python run.py experiment=PATH`` runs."""

from collections.abc import Mapping
from typing import Any

from multicrop.config import option_values
from multicrop.files import as_yaml, redacted
from multicrop.record import CHOSEN
from multicrop.runs.choose_found import Found
from multicrop.runs.settings import Settings

GROUPS = ("dataset", "corruption", "model", "crop", "prompt", "aggregator")
KNOBS = ("seed", "crop_seed", "split", "on_unreadable")
FACTS = ("setting", "chosen_on", "images", "settings", "gain", "answer")
HEADER = """\
# @package _global_
# Chosen by task=choose on {images} {kind} of {dataset} among {settings} settings.
# {answer}
# Command: python run.py experiment={path}
# Expected: {accuracy:.1f} % on the {split} images
"""


def chosen_yaml(settings: Settings, found: Found, *, accuracy: float, fitted: Mapping[str, Any] | None = None) -> str:
    """The text of chosen.yaml.

    Args:
        settings: The configuration of the run in the chosen setting.
        found: What the search found; ``choice`` holds its facts, which no run reads, and ``temperature`` calibrates probabilities.
        accuracy: Accuracy of the final row, from 0 to 1.
        fitted: What `chosen_adapter.saved` says of the fitted adapter; None where the setting has none.

    Returns:
        An experiment: the option of each group that decides the numbers, and the values in which the run differs from these options.
    """
    groups = [*GROUPS, "adapter"] if fitted else GROUPS
    options = {"task": "few_shot" if fitted else "zero_shot", **{group: settings.choices[group] for group in groups}}
    known = option_values(options)
    body: dict[str, Any] = {"defaults": [{f"override /{group}": option} for group, option in options.items()]}
    for group in groups:
        if changed := _changed(settings.config[group], known.get(group, {})):
            body[group] = changed
    body |= {name: settings[name] for name in KNOBS if settings[name] != known.get(name)}
    body["task"] = {"fusion_weight": settings.task["fusion_weight"]}
    if fitted:
        body["task"]["shots"] = settings.task["shots"]
        body["fitted"] = dict(fitted)
    if found.temperature is not None:
        body["temperature"] = found.temperature
    body["choice"] = {name: value for name, value in found.facts().items() if name in FACTS}
    header = HEADER.format(
        images=len(found.scored.labels),
        kind=found.kind,
        dataset=settings.choices["dataset"],
        settings=len(found.scored.settings),
        answer=found.answer()[0],
        path=settings.output / CHOSEN,
        accuracy=100 * accuracy,
        split=settings["split"],
    )
    return header + as_yaml(redacted(body))


def _changed(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from the known ones, nested as they are."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(known.get(name), Mapping):
            if inner := _changed(value, known[name]):
                found[name] = inner
        elif name not in known or value != known[name]:
            found[name] = value
    return found
