"""What a record says of the data that its model was trained on, and whether the scored images are among them."""

from collections.abc import Mapping, Sequence
from typing import Any

WEB = "web:"  # begins the name of a corpus of the web, which may hold any image
NOT_PUBLISHED = "not published"
STATED, SEEN = "training_data", "seen"  # keys of data.json


def training_facts(config: Mapping[str, Any], *, split: str, names: Sequence[str]) -> dict[str, Any]:
    """Compare the training data of the model with the origin of the scored images.

    Args:
        config: The configuration: ``model.facts.training_data`` is a list of names or ``not published``; ``dataset.facts.origin`` names
            per split what its images are drawn from.
        split: The scored split.
        names: Names of the data set.

    Returns:
        ``training_data`` as the model states it, None where it states nothing; ``seen``: the names that both have.
    """
    stated = _facts(config, "model").get("training_data")
    origin = (_facts(config, "dataset").get("origin") or {}).get(split) or []
    drawn = {*names, *([origin] if isinstance(origin, str) else origin)}
    return {STATED: stated, SEEN: [name for name in stated if name in drawn] if isinstance(stated, list) else []}


def training_words(data: Mapping[str, Any], model: str) -> str:
    """The sentence on training data for tables and pages.

    Args:
        data: The content of data.json.
        model: The name of the model.

    Returns:
        The sentence; empty where the model states nothing, and where its training data are known and none of them was scored.
    """
    stated, seen = data.get(STATED), data.get(SEEN)
    if seen:
        return f"{model} was trained on {', '.join(seen)}, which these images are drawn from or overlap: they are not held out"
    if stated == NOT_PUBLISHED:
        return f"training data of {model}: not published, so these images may be among them"
    web = [name.removeprefix(WEB) for name in stated or () if name.startswith(WEB)]
    return f"training data of {model}: the web ({', '.join(web)}), so these images may be among them" if web else ""


def _facts(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    return (config.get(group) or {}).get("facts") or {}
