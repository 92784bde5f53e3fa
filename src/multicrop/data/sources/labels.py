"""The classes of labels that are texts: names, or numbers that a list names."""

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
