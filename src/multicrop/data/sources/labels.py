"""The classes of labels that are texts: names, or numbers that a list names."""

import json
from collections.abc import Iterable, Mapping

from multicrop.data.classes import ClassList, classes_of, numbered_classes


def text_labels(
    texts: Iterable[str], *, name: str, classes: str | None, class_names: str | None, aliases: Mapping[str, str] | None
) -> tuple[ClassList, dict[str, int]]:
    """The classes, and the label of each text: a class name, or a whole number where all texts are numbers.

    Raises ValueError as `classes_of` and `numbered_classes` do.
    """
    found = sorted(set(texts))
    if all(text.removeprefix("-").isdigit() for text in found):
        numbers = {text: int(text) for text in found}
        return numbered_classes(list(numbers.values()), what=name, classes=classes, class_names=class_names), numbers
    names = classes_of(found, what=f"the labels of {name}", classes=classes, class_names=class_names, aliases=aliases)
    return names, {text: row for row, text in enumerate(found)}


def read_label(data: bytes, label_key: str, label_field: str | None, name: str) -> str:
    """The label as text; raises ValueError if the member holds none."""
    try:
        text = data.decode("utf-8").strip()
        label = json.loads(text)[label_field] if label_key == "json" else text
    except (UnicodeDecodeError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{name} holds no label ({error!r}); expected a text, or JSON with the field dataset.label_field={label_field}"
        ) from error
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise ValueError(f"{name} holds the label {label!r}; expected a class name or a whole number")
    return str(label)


def read_cluster(data: bytes, field: str, name: str) -> str:
    """The cluster in a JSON member, "" where it has no such field; raises ValueError if the member is no JSON object."""
    try:
        value = json.loads(data).get(field)
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{name} is no JSON object ({error!r}); dataset.cluster_field={field} reads its clusters there") from error
    return "" if value is None else str(value)
