"""The packaged description banks: for each data set, phrases about the parts of every class that a crop can show."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multicrop.text.descriptions.files import ClassTexts, match

FOLDER = Path(__file__).parent
HEADER = ("set", "classes_from", "author", "date", "licence", "how")


@dataclass(frozen=True)
class DescriptionBank:
    """The phrases of every class of one data set, in the order of its class list.

    `classes` maps a stable key to the class name; the two differ only where names repeat (ImageNet: the key is the wnid).
    """

    name: str
    classes: dict[str, str]
    descriptions: dict[str, list[str]]


def available() -> list[str]:
    """The names of the packaged banks, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_bank(name: str) -> DescriptionBank:
    """The packaged bank of the data set `name`; raises ValueError when there is none."""
    if name not in available():
        raise ValueError(
            f"no description bank is called {name!r}; packaged are {', '.join(available())}. "
            "Pass one of these, or a file of your own in the same format to read_bank(PATH)"
        )
    return read_bank(FOLDER / f"{name}.json")


def phrases_for(name: str, class_names: Sequence[str]) -> dict[str, list[str]]:
    """The phrases of the packaged bank for these classes, found by key or by name (case, "_" and "-" aside).

    A class that the bank does not know is left out; so is a name that the bank has twice, whose key (ImageNet's wnid) must be given.
    """
    bank = load_bank(name)
    keys = match(ClassTexts(bank.descriptions, bank.classes), class_names)
    return {c: bank.descriptions[key] for c, key in zip(class_names, keys, strict=True) if key is not None}


def read_bank(path: Path) -> DescriptionBank:
    """The bank in a JSON file of the packaged format; raises ValueError that names what the file lacks."""
    table = _read_object(path)
    if lacking := [field for field in HEADER if not isinstance(table.get(field), str) or not table[field].strip()]:
        raise ValueError(f"{path} needs the header fields {', '.join(HEADER)} as text; add {', '.join(lacking)}")
    descriptions = table.get("descriptions")
    if not _is_phrases(descriptions):
        raise ValueError(f'{path} needs "descriptions": {{class: [phrase, ...]}} of non-empty texts; put the phrases of every class there')
    names = table.get("names", {key: key for key in descriptions})
    if not isinstance(names, dict) or list(names) != list(descriptions):
        raise ValueError(
            f'"names" of {path} should name each key of "descriptions" in the same order ({len(descriptions)} keys); '
            "leave it out where the keys are the class names"
        )
    return DescriptionBank(table["set"], names, descriptions)


def _read_object(path: Path) -> dict:
    """The JSON object in the file."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} should be a readable JSON file, but: {error}. Compare it with {FOLDER / 'eurosat.json'}") from error
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
