"""Reads texts of classes and class lists from files, and matches texts to classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multicrop.files.reading import json_of, text_of
from multicrop.text.class_names import NameIndex, spelled_alike
from multicrop.text.joins import GlobalText, parsed

SHAPE = "{class: [phrase, ...]}"
ONE_KEY = 'Classes that share a name have a stable key each (ImageNet: the wnid) and "names": {key: class name}, as docs/texts.md shows'


@dataclass(frozen=True)
class ClassTexts:
    """The texts of every key of a file; `titles` gives the class name of each key (the key itself where no stable keys exist).

    `texts` are local, phrases about parts; `whole` holds the global texts, of the keys that have some.
    """

    texts: dict[str, list[str]]
    titles: dict[str, str]
    whole: dict[str, list[str]] = field(default_factory=dict)

    def row(self, key: str) -> list[str]:
        """The texts of a key, the global ones last."""
        return [*self.texts[key], *self.whole.get(key, ())]


def read_texts(file: str | Path, knob: str = "prompt.file") -> ClassTexts:
    """Read the texts of classes from a JSON file.

    Args:
        file: File ``{class: [phrase, ...]}`` (as those of DCLIP and CuPL), or one of the packaged format. A phrase may begin with a join
            word: ``"a|long tail"``. Texts may be empty; ``check`` finds them.
        knob: Setting that names the file, for error messages.

    Returns:
        The texts of every key.

    Raises:
        ValueError: If the file is absent, not JSON in UTF-8, of another shape, without classes, or has a class twice or in two spellings.
    """
    path, wanted = Path(file).expanduser(), f"{knob} wants a JSON object {SHAPE}"
    try:
        table = json_of(path, _no_key_twice)
    except ValueError as error:
        raise ValueError(f"the description file {path} {error}; {wanted}") from error
    except _KeyTwiceError as error:
        raise ValueError(f"the description file {path} has {error}: JSON keeps only the last. {ONE_KEY}") from error
    texts = _class_texts(table, f"the description file {path} must be a JSON object {SHAPE} of non-empty strings")
    if twice := _spelled_twice(texts.titles):
        listed = "; ".join(" and ".join(map(repr, keys)) for keys in twice[:3])
        raise ValueError(
            f"the description file {path} spells {len(twice)} classes in two ways, and only one of the two would be read: {listed}. Put "
            f"all texts of a class under one key. {ONE_KEY}"
        )
    return texts


def _class_texts(table: object, complaint: str) -> ClassTexts:
    """The texts of a parsed file; raises ValueError when it is of another shape."""
    if not isinstance(table, dict):
        raise ValueError(f"{complaint}; it holds a {type(table).__name__}")
    if not isinstance(table.get("descriptions"), dict):
        table = {"descriptions": table}  # {class: [phrase, ...]}
    local, whole = table["descriptions"], table.get("global", {})
    if not local:
        raise ValueError(f"{complaint}; it has no class")
    if not isinstance(whole, dict) or set(whole) - set(local):
        unknown = f"; got {', '.join(sorted(set(whole) - set(local))[:3])}" if isinstance(whole, dict) else ""
        raise ValueError(f'{complaint}; its "global" must be an object {SHAPE} of keys of "descriptions"{unknown}')
    for name, row in (*local.items(), *whole.items()):
        if not isinstance(row, list) or not all(isinstance(text, str) for text in row):
            raise ValueError(f"{complaint}; that of {name!r} is {json.dumps(row, ensure_ascii=False)[:60]}")
    titles = table.get("names")
    if titles is None:
        titles = {key: key for key in local}
    if not isinstance(titles, dict) or set(titles) != set(local) or not all(isinstance(title, str) for title in titles.values()):
        raise ValueError(f'{complaint}; its "names" must give each key of "descriptions" the class name, as text')
    return ClassTexts(
        {key: [parsed(text) for text in row] for key, row in local.items()},
        {key: titles[key] for key in local},
        {key: [GlobalText(text) for text in row] for key, row in whole.items()},
    )


def _spelled_twice(titles: Mapping[str, str]) -> list[list[str]]:
    """The keys that are class names and differ only in case, "_", "-" or spaces; stable keys tell classes of one name apart."""
    return spelled_alike(((key, key) for key, title in titles.items() if key == title), separators="-_")


class _KeyTwiceError(Exception):
    """A JSON object has a key twice."""


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()):
        raise _KeyTwiceError(f"{len(twice)} classes twice ({', '.join(twice[:3])})")
    return dict(pairs)


def match(texts: ClassTexts, class_names: Sequence[str], class_keys: Sequence[str] | None = None) -> list[str | None]:
    """Find the key of the texts of each class.

    Args:
        texts: Texts by key.
        class_names: Class names in any spelling.
        class_keys: Stable key of each class (ImageNet: the wnid), which decides where names repeat.

    Returns:
        The key of each class; None where no key fits, and where a name fits several keys.
    """
    index = NameIndex(texts.titles)
    return [index.find(name, key) for name, key in zip(class_names, class_keys or [None] * len(class_names), strict=True)]


def ambiguous(texts: ClassTexts, class_names: Sequence[str], keys: Sequence[str | None]) -> list[str]:
    """The names without a match because several keys have that name."""
    index = NameIndex(texts.titles)
    return [name for name, key in zip(class_names, keys, strict=True) if key is None and len(index.candidates(name)) > 1]


def read_classes(file: str | Path) -> tuple[list[str], list[str] | None]:
    """Read a class list.

    Args:
        file: Text file with one name per line (.txt), or JSON: ``[name]``, ``{key: name}`` or ``[{"wnid": key, "name": name}]``.

    Returns:
        Class names, and stable keys or None.

    Raises:
        ValueError: If the file is absent, not UTF-8, empty or of another shape.
    """
    path = Path(file).expanduser()
    wanted = "the class list wants one name per line (.txt), or JSON: [name, ...], {key: name} or [{wnid, name}, ...]"
    try:
        table = json_of(path) if path.suffix == ".json" else [line.strip() for line in text_of(path).splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"the file {path} {error}; {wanted}") from error
    names, keys = _names_and_keys(table)
    if not names or not all(isinstance(name, str) and name.strip() for name in [*names, *(keys or [])]):
        raise ValueError(f"{path} holds {'no class' if not names else 'something else than names'}; {wanted}")
    return names, keys


def _names_and_keys(table: object) -> tuple[list, list | None]:
    """Class names and stable keys of a parsed class list; no names where it has another shape."""
    if isinstance(table, Mapping):
        if isinstance(table.get("descriptions"), Mapping):  # a description file: its classes
            table = table.get("names") or {key: key for key in table["descriptions"]}
        keys, values = list(table), list(table.values())
        of_texts = all(isinstance(value, list) for value in values)  # {class: [phrase, ...]}
        return (keys, None) if of_texts or keys == values else (values, keys)
    if not isinstance(table, list):
        return [], None
    if table and all(isinstance(row, Mapping) and "name" in row for row in table):
        keys = [row.get("wnid", row.get("key")) for row in table]
        return [row["name"] for row in table], keys if all(keys) else None
    return table, None
