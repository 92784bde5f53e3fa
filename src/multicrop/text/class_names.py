"""Compares, shows and finds class names: the one rule for data sets, class lists and description sets."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

PREFIX = r"(\d{3}\.|/[a-z]/)(?=.)"  # "001." of CUB's folders, "/a/" of the Places categories
PLACES = re.compile(r"[a-z]+(_[a-z]+)*(/[a-z]+(_[a-z]+)*)+")  # "apartment_building/outdoor": the slash separates words


def plain(name: str) -> str:
    """The name for comparison: case-folded, without a "001." or "/a/" prefix, every run of other signs than letters and digits as a space.

    A name of signs only ("+") is its own plain form.
    """
    bare = re.sub(PREFIX, "", name.strip(), count=1)
    return " ".join(re.sub(r"[\W_]+", " ", bare.casefold()).split()) or name.strip()


def spelled_alike(names: Iterable[tuple[str, str]], separators: str = "_") -> list[list[str]]:
    """Groups of two and more names that differ only in case, spaces and separators.

    Args:
        names: Pairs of a name and of what stands for it in the groups.
        separators: Characters that count as spaces.

    Returns:
        What stands for the names of each group.
    """
    groups: dict[str, list[str]] = {}
    for name, said in names:
        groups.setdefault(" ".join(re.sub(f"[{separators}]", " ", name).casefold().split()), []).append(said)
    return [said for said in groups.values() if len(said) > 1]


def shown_name(name: str) -> str:
    """The name for a prompt: without a "001." or "/a/" prefix, "_" as a space, "/" as a space only in paths of Places categories."""
    bare = re.sub(f"^{PREFIX}", "", name)
    bare = bare.replace("/", " ") if PLACES.fullmatch(bare) else bare
    return " ".join(bare.replace("_", " ").split())


@dataclass(frozen=True)
class NameIndex:
    """Finds the key of a class by its stable key, its exact name, or its plain name.

    Args:
        titles: Class name of each key; the two are equal where no stable key exists.
    """

    titles: Mapping[str, str]
    _by_plain: dict[str, list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index all keys and names by their plain form."""
        by_plain: dict[str, list[str]] = {}
        for key, title in self.titles.items():
            for spelling in {plain(title), plain(key)}:
                by_plain.setdefault(spelling, []).append(key)
        object.__setattr__(self, "_by_plain", by_plain)

    def find(self, name: str, stable_key: str | None = None) -> str | None:
        """Find the key of a class.

        Args:
            name: Class name in any spelling, or a key.
            stable_key: Key that identifies the class whatever its name is (ImageNet: the wnid).

        Returns:
            The key, or None if no entry or more than one entry has this name.
        """
        for exact in (stable_key, name):
            if exact is not None and exact in self.titles:
                return exact
        fitting = self.candidates(name)
        same = [key for key in fitting if self.titles[key] == name]
        return fitting[0] if len(fitting) == 1 else same[0] if len(same) == 1 else None

    def candidates(self, name: str) -> list[str]:
        """All keys whose name or key has the plain form of `name`."""
        return self._by_plain.get(plain(name), [])
