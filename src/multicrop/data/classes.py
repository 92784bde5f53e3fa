"""Classes by name: what a source calls its classes is matched to a reference list by name or by stable key, never by position."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multicrop.text.descriptions import load_bank

LABEL_ORDER = ("cifar10", "cifar100", "imagenet1k")  # packaged lists whose order is the order of the labels
TOLD_APART = {"n04008634": "projectile", "n04355933": "sunglass"}  # the first WordNet lemma where two ImageNet classes share a name
SHOWN = 6


@dataclass(frozen=True)
class ClassList:
    """Class names, all different, and where there is one a stable key a class (ImageNet: the wnid)."""

    names: list[str]
    keys: list[str] | None = None

    def index(self, what: str) -> dict[str, int]:
        """The position of each name (in plain form) and key; raises ValueError when two classes share a plain name."""
        plain_names = [plain(name) for name in self.names]
        if twice := [name for name in dict.fromkeys(plain_names) if plain_names.count(name) > 1]:
            rows = [f"{i}: {self.names[i]}" for i, name in enumerate(plain_names) if name == twice[0]]
            raise ValueError(f"{what} has one name for several classes ({'; '.join(rows)}); tell them apart by their name or a stable key")
        return {name: i for i, name in enumerate(plain_names)} | {key: i for i, key in enumerate(self.keys or [])}


def plain(name: str) -> str:
    """The name for comparing: lower case, without a leading "001." or "/a/", everything but letters and digits as one space."""
    name = re.sub(r"^(\d+\.|/[a-z]/)(?=.)", "", name.strip())
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())


def shown_name(name: str) -> str:
    """The name as a prompt wants it: without a leading "001." or "/a/", "_" and "/" as spaces."""
    return " ".join(re.sub(r"^(\d{3}\.|/[a-z]/)(?=.)", "", name).replace("_", " ").replace("/", " ").split())


def packaged(name: str) -> ClassList:
    """The class list of a packaged description bank; names that repeat in ImageNet are told apart by wnid."""
    bank = load_bank(name)
    keys = list(bank.classes)
    names = [TOLD_APART.get(key, shown_name(title)) for key, title in bank.classes.items()]
    return ClassList(names, keys if keys != list(bank.classes.values()) else None)


def match(
    found: Sequence[str], wanted: ClassList, *, what: str, reference: str, aliases: Mapping[str, str] | None = None, subset: bool = False
) -> list[int]:
    """The position in `wanted` of each class found, by key or by name (case, "_", "-" and punctuation aside) after `aliases`.

    `subset` lets classes of `wanted` be absent. Raises ValueError with both lists side by side when the two do not pair one to one.
    """
    aliases, row = dict(aliases or {}), wanted.index(reference)
    named = [aliases.get(name, name) for name in found]
    positions = [row[name] if name in row else row.get(plain(name)) for name in named]
    hit = [p for p in positions if p is not None]
    if None in positions or len(set(hit)) < len(hit) or (not subset and len(hit) < len(wanted.names)):
        raise ValueError(_difference(list(found), wanted.names, positions, what, reference, subset))
    return hit


def _difference(found: list[str], wanted: list[str], positions: list[int | None], what: str, reference: str, subset: bool) -> str:
    """What a failed match says: the first rows that differ, and what each side has alone."""
    rows = [(i, *pair) for i, pair in enumerate(zip(found, wanted, strict=False)) if plain(pair[0]) != plain(pair[1])]
    width = max([len(str(left)) for _, left, _ in rows[:SHOWN]] or [0])
    table = "".join(f"\n  {i:>4}  {left:<{width}} | {right}" for i, left, right in rows[:SHOWN])
    alone = [name for name, p in zip(found, positions, strict=True) if p is None]
    absent = [] if subset else [name for i, name in enumerate(wanted) if i not in positions]
    twice = sorted({wanted[p] for p in positions if p is not None and positions.count(p) > 1})
    parts = [("only in the first", alone), ("only in the second", absent), ("several of the first name the one class", twice)]
    sides = "".join(f"\n  {label} ({len(names)}): {_some(names)}" for label, names in parts if names)
    return (
        f"{what} ({len(found)} classes) and {reference} ({len(wanted)} classes) are not the same classes; side by side they differ first in"
        f"{table}{sides}\nRename what differs, pass dataset.aliases={{name in the data: name in the list}}, or dataset.classes=null"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def read_names(path: str) -> list[str]:
    """A JSON list of class names; raises ValueError when the file is something else."""
    file, wanted = Path(path).expanduser(), "it wants a JSON list of class names in the order of the labels"
    if not file.is_file():
        raise ValueError(f"dataset.class_names={path} does not exist; {wanted}")
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"dataset.class_names={path} is no JSON ({error}); {wanted}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"dataset.class_names={path} holds something else; {wanted}, none of them empty")
    return names


def classes_of(
    found: Sequence[str], *, what: str, classes: str | None, class_names: str | None, aliases: Mapping[str, str] | None = None
) -> ClassList:
    """The class names to use for the classes that the data names, in the data's own order.

    Without a reference they are the data's names. `classes` is a packaged list, `class_names` a JSON list: either is matched by name,
    so its order does not matter. Raises ValueError when they name other classes.
    """
    if len(found) < 2:
        raise ValueError(f"{what} has {len(found)} classes ({_some(found) or 'none'}); a classification needs two or more")
    if classes is None and class_names is None:
        names = ClassList([shown_name((aliases or {}).get(name, name)) for name in found])
        names.index(what)
        return names
    reference = packaged(classes) if classes else ClassList(read_names(str(class_names)))
    said = f"the packaged list {classes}" if classes else f"dataset.class_names={class_names}"
    order = match(found, reference, what=what, reference=said, aliases=aliases)
    return ClassList([reference.names[i] for i in order], [reference.keys[i] for i in order] if reference.keys else None)


def numbered_classes(labels: Sequence[int], *, what: str, classes: str | None, class_names: str | None) -> ClassList:
    """The class names of data whose labels are bare numbers: only a list in label order can name them.

    Raises ValueError when none is given, when its order is not the labels', or when a label lies outside it.
    """
    remedy = "pass dataset.class_names=FILE, a JSON list of class names in the order of the labels"
    if classes is not None and classes not in LABEL_ORDER:
        raise ValueError(
            f"the labels of {what} are bare numbers, and the packaged list {classes} is not in the order of any copy's labels; {remedy}"
        )
    if classes is None and class_names is None:
        raise ValueError(f"the labels of {what} are bare numbers and nothing names them; {remedy}")
    names = packaged(classes) if classes else ClassList(read_names(str(class_names)))
    check_labels(labels, names.names, what)
    return names


def check_labels(labels: Sequence[int], names: Sequence[str], what: str) -> None:
    """Raise ValueError for a label without a class name."""
    if wrong := sorted({label for label in labels if not 0 <= label < len(names)}):
        raise ValueError(
            f"{what} has labels out of range: {', '.join(map(str, wrong[:SHOWN]))}; {len(names)} class names make 0 to {len(names) - 1}. "
            "Labels count from 0; give one class name a label (dataset.class_names=FILE), or mend the labels"
        )
