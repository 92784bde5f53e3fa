"""The packaged description sets: for each data set, phrases about the parts of every class that a crop can show; some have global texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multicrop.files.reading import json_of
from multicrop.text.class_names import NameIndex
from multicrop.text.joins import GlobalText, parsed

FOLDER = Path(__file__).parent
HEADER = ("set", "classes_from", "author", "date", "licence", "how")


@dataclass(frozen=True)
class DescriptionSet:
    """The phrases of every class of one data set, in the order of its class list.

    `classes` maps a stable key to the class name; the two differ only where names repeat (ImageNet: the key is the wnid). `global_texts`
    are sentences about the whole, in the same order; empty where the set has none.
    """

    name: str
    classes: dict[str, str]
    descriptions: dict[str, list[str]]
    global_texts: dict[str, list[str]] = field(default_factory=dict)

    def texts_of(self, key: str) -> list[str]:
        """The phrases of a class, then its global texts."""
        return [*self.descriptions[key], *self.global_texts.get(key, ())]


def available() -> list[str]:
    """The names of the packaged description sets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def with_global_texts() -> list[str]:
    """The names of the packaged description sets that have global texts, sorted."""
    return [name for name in available() if load_description_set(name).global_texts]


def load_description_set(name: str) -> DescriptionSet:
    """Load a packaged description set.

    Args:
        name: Name of the data set (``imagenet1k``, ``cub200``, ...); see ``available``.

    Returns:
        The phrases of every class, each a ``Phrase`` with its join word.

    Raises:
        ValueError: If no description set has this name.
    """
    if name not in available():
        raise ValueError(
            f"no description set is called {name!r}; packaged are {', '.join(available())}. "
            "Pass one of these, or read a file of your own in the same format: read_description_set(PATH)"
        )
    return read_description_set(FOLDER / f"{name}.json")


def phrases_for(name: str, class_names: Sequence[str]) -> dict[str, list[str]]:
    """Select the packaged phrases of some classes.

    Args:
        name: Name of the description set.
        class_names: Class names in any spelling, or stable keys.

    Returns:
        The phrases of each class that the set has. A name that the set has twice is left out; pass its key (ImageNet: the wnid).
    """
    packaged = load_description_set(name)
    index = NameIndex(packaged.classes)
    return {c: packaged.descriptions[key] for c in class_names if (key := index.find(c)) is not None}


def read_description_set(path: Path) -> DescriptionSet:
    """Read a JSON file of the packaged format.

    Args:
        path: File with the header fields, ``descriptions`` and, where class names repeat, ``names``; ``global`` has texts about the whole.

    Returns:
        The description set.

    Raises:
        ValueError: If a header field is absent or the file has another shape.
    """
    table = _read_object(path)
    if lacking := [field for field in HEADER if not isinstance(table.get(field), str) or not table[field].strip()]:
        raise ValueError(f"{path} needs the header fields {', '.join(HEADER)} as text; add {', '.join(lacking)}")
    descriptions = table.get("descriptions")
    if not _is_phrases(descriptions):
        raise ValueError(f'{path} needs "descriptions": {{class: [phrase, ...]}} of non-empty texts; put the phrases of every class there')
    whole = table.get("global", {})
    if whole and not (_is_phrases(whole) and list(whole) == list(descriptions)):
        raise ValueError(f'"global" of {path} should give each key of "descriptions" a list of texts, in the same order, or be left out')
    names = table.get("names", {key: key for key in descriptions})
    if not isinstance(names, dict) or list(names) != list(descriptions):
        raise ValueError(
            f'"names" of {path} should name each key of "descriptions" in the same order ({len(descriptions)} keys); '
            "leave it out where the keys are the class names"
        )
    local = {key: [parsed(text) for text in row] for key, row in descriptions.items()}
    return DescriptionSet(table["set"], names, local, {key: list(map(GlobalText, row)) for key, row in whole.items()})


def _read_object(path: Path) -> dict:
    """The JSON object in the file."""
    try:
        table = json_of(path)
    except ValueError as error:
        raise ValueError(f"{path} should be a readable JSON file, but it {error}. Compare it with {FOLDER / 'eurosat.json'}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} should hold a JSON object, got a {type(table).__name__}. Compare it with {FOLDER / 'eurosat.json'}")
    return table


def _is_phrases(value: object) -> bool:
    """Whether `value` is a non-empty object {class: [phrase, ...]} of non-empty texts."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(row, list) and all(isinstance(text, str) and text.strip() for text in row) for row in value.values())
    )
