"""Class lists of data sets: the names in the data are matched to a reference list by name or by stable key, never by position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multicrop.files.reading import json_of
from multicrop.text.class_names import NameIndex, plain, shown_name, spelled_alike
from multicrop.text.descriptions import load_description_set

LABEL_ORDER = ("cifar10", "cifar100", "imagenet1k")  # packaged lists whose order is the order of the labels
TOLD_APART = {"n04008634": "projectile", "n04355933": "sunglass"}  # the first WordNet lemma where two ImageNet classes share a name
SHOWN = 6


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, in the order of its labels.

    Args:
        names: Class names, all different.
        keys: Stable key per class (ImageNet: the wnid), or None.
    """

    names: list[str]
    keys: list[str] | None = None

    def index(self, what: str) -> dict[str, int]:
        """The position of each plain name and key; raises ValueError when two classes share a plain name."""
        plain_names = [plain(name) for name in self.names]
        if twice := [name for name in dict.fromkeys(plain_names) if plain_names.count(name) > 1]:
            rows = [f"{i}: {self.names[i]}" for i, name in enumerate(plain_names) if name == twice[0]]
            raise ValueError(f"{what} has one name for several classes ({'; '.join(rows)}); tell them apart by their name or a stable key")
        return {name: i for i, name in enumerate(plain_names)} | {key: i for i, key in enumerate(self.keys or [])}


def packaged(name: str) -> ClassList:
    """Load the class list of a packaged description set.

    Args:
        name: Name of the set.

    Returns:
        Names as prompts show them. The two pairs of ImageNet classes with one name get different names.
    """
    classes = load_description_set(name).classes
    names = [TOLD_APART.get(key, shown_name(title)) for key, title in classes.items()]
    return ClassList(names, list(classes) if any(key != title for key, title in classes.items()) else None)


def match(
    found: Sequence[str], wanted: ClassList, *, what: str, reference: str, aliases: Mapping[str, str] | None = None, subset: bool = False
) -> list[int]:
    """Find the classes of the data in a reference list.

    Args:
        found: Names or stable keys in the data, in any spelling (case, "_", "-" and punctuation do not count).
        wanted: Reference list.
        what: Where the names come from, for the error message.
        reference: Name of the reference list, for the error message.
        aliases: Name in the reference list by name in the data, applied first.
        subset: Whether classes of `wanted` may be absent.

    Returns:
        The position in `wanted` of each class found.

    Raises:
        ValueError: If the two lists do not pair one to one; the message shows both side by side.
    """
    wanted.index(reference)  # refuses names that differ only in spelling
    index = NameIndex(dict(zip(wanted.keys or wanted.names, wanted.names, strict=True)))
    position = {key: i for i, key in enumerate(index.titles)}
    named = [(aliases or {}).get(name, name) for name in found]
    positions = [position.get(key) if (key := index.find(name)) is not None else None for name in named]
    hit = [p for p in positions if p is not None]
    if None in positions or len(set(hit)) < len(hit) or (not subset and len(hit) < len(wanted.names)):
        raise ValueError(_difference(list(found), wanted.names, positions, what, reference, subset))
    return hit


def _difference(found: list[str], wanted: list[str], positions: list[int | None], what: str, reference: str, subset: bool) -> str:
    """The message of a failed match: the first rows that differ, and the names that only one side has."""
    pairs = enumerate(zip(found, wanted, strict=False))
    rows = [(i, one, other) for i, (one, other) in pairs if plain(one) != plain(other)][:SHOWN]
    width = max((len(one) for _, one, _ in rows), default=0)
    table = "".join(f"\n  {i:>4}  {one:<{width}} | {other}" for i, one, other in rows)
    by_position: dict[int | None, list[str]] = {}
    for name, position in zip(found, positions, strict=True):
        by_position.setdefault(position, []).append(name)
    alone = by_position.pop(None, [])
    absent = [] if subset else [name for i, name in enumerate(wanted) if i not in by_position]
    twice = sorted(f"{' and '.join(names)} are {wanted[i]}" for i, names in by_position.items() if i is not None and len(names) > 1)
    parts = [("only in the first", alone), ("only in the second", absent), ("several of the first name one class of the second", twice)]
    sides = "".join(f"\n  {label} ({len(names)}): {_some(names)}" for label, names in parts if names)
    return (
        f"{what} ({len(found)} classes) and {reference} ({len(wanted)} classes) are not the same classes; side by side they differ first in"
        f"{table}{sides}\nRename what differs, pass dataset.aliases={{name in the data: name in the list}}, or dataset.classes=null"
    )


def check_spellings(names: Sequence[str], what: str, remedy: str, *, said: Sequence[str] | None = None) -> None:
    """Raise ValueError where two names are equal, or differ only in case or in "_" for a space: an encoder reads them as one text.

    The message lists what the data ``said`` for each name, by default the name itself.
    """
    if same := spelled_alike(zip(names, said or names, strict=True)):
        listed = "; ".join(" and ".join(map(repr, spellings)) for spellings in same[:SHOWN])
        raise ValueError(f"{what} name one class several times, and a prompt does not tell the spellings apart: {listed}. {remedy}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def read_names(path: str) -> list[str]:
    """Read a JSON list of class names; raises ValueError for any other file."""
    file, wanted = Path(path).expanduser(), "it wants a JSON list of class names in the order of the labels"
    try:
        names = json_of(file)
    except ValueError as error:
        raise ValueError(f"dataset.class_names={path} {error}; {wanted}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"dataset.class_names={path} holds something else; {wanted}, none of them empty")
    return names


def classes_of(
    found: Sequence[str], *, what: str, classes: str | None, class_names: str | None, aliases: Mapping[str, str] | None = None
) -> ClassList:
    """Choose the class names for data that names its classes.

    Args:
        found: Class names in the data, in the order of its labels.
        what: Where they come from, for error messages.
        classes: Packaged class list, or None.
        class_names: JSON file with a class list, or None. Either list is matched by name, so its order does not matter.
        aliases: Name in the list by name in the data.

    Returns:
        The classes in the order of `found`: the names of the list, or those of the data if no list is set.

    Raises:
        ValueError: If there are fewer than two classes, or the list names other classes.
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
    """Choose the class names for data whose labels are numbers, which only a list in label order can name.

    Args:
        labels: All labels of the data.
        what: Where they come from, for error messages.
        classes: Packaged class list in label order (CIFAR-10, CIFAR-100, ImageNet), or None.
        class_names: JSON file with a class list in label order, or None.

    Returns:
        The classes, in label order.

    Raises:
        ValueError: If no list is set, if its order is not that of the labels, or if a label lies outside it.
    """
    remedy = "pass dataset.class_names=FILE, a JSON list of class names in the order of the labels"
    if classes is not None and classes not in LABEL_ORDER:
        raise ValueError(
            f"the labels of {what} are bare numbers, and the packaged list {classes} is not in the order of any copy's labels; {remedy}"
        )
    if classes is None and class_names is None:
        raise ValueError(f"the labels of {what} are bare numbers and nothing names them; {remedy}")
    names = packaged(classes) if classes else ClassList(read_names(str(class_names)))
    check_spellings(names.names, f"the names of {classes or class_names}", "give each label a name of its own")
    check_labels(labels, names.names, what)
    return names


def check_labels(labels: Sequence[int], names: Sequence[str], what: str) -> None:
    """Raise ValueError for a label without a class name."""
    if wrong := sorted({label for label in labels if not 0 <= label < len(names)}):
        raise ValueError(
            f"{what} has labels out of range: {', '.join(map(str, wrong[:SHOWN]))}; {len(names)} class names make 0 to {len(names) - 1}. "
            "Labels count from 0; give one class name a label (dataset.class_names=FILE), or correct the labels"
        )
