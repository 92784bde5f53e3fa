"""Finds class names in descriptions (whole, inflected or in part), counts, drops or masks them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from multicrop.text.audit.audit import content_words, name_stem_words, stem

LEAK = ("keep", "drop", "mask")


@dataclass(frozen=True)
class Leakage:
    """How many of the texts hold the whole class name, and how many only a content word of it."""

    texts: int
    whole: int
    part: int

    def __str__(self) -> str:
        """`12 of 300 texts name their class (4.0 %), 9 more a word of its name (3.0 %)`."""
        share = [100 * count / max(1, self.texts) for count in (self.whole, self.part)]
        whole, part = f"{self.whole} of {self.texts} texts name their class ({share[0]:.1f} %)", f"{self.part} more a word of its name"
        return f"{whole}, {part} ({share[1]:.1f} %)"


def leakage(rows: Iterable[tuple[str, Sequence[str]]]) -> Leakage:
    """Count the leakage over rows of (class name, its texts)."""
    found = [leak_of(text, name) for name, texts in rows for text in texts]
    return Leakage(len(found), found.count("whole"), found.count("part"))


def leak_of(text: str, name: str) -> str | None:
    """`whole` where the text holds the class name (any case and spelling, plural, possessive), `part` where only a content word of it."""
    if name_pattern(name).search(text):
        return "whole"
    return "part" if name_stem_words(text, name) else None


def dropped(texts: Sequence[str], name: str) -> list[str]:
    """The texts that hold neither the class name nor a content word of it."""
    return [text for text in texts if leak_of(text, name) is None]


def masked(text: str, name: str) -> str:
    """The text with "it", "its" or "they" for the class name and its article, and "this" for a content word of it that stands alone."""
    text = name_pattern(name).sub(_pronoun, text)
    stems, exact = content_words(name)
    return re.sub(r"[^\W_]+", lambda word: "this" if word[0].lower() in exact or stem(word[0].lower()) in stems else word[0], text)


def _pronoun(found: re.Match[str]) -> str:
    ending = found["ending"] or ""
    word = "its" if "'" in ending or "\u2019" in ending else "they" if ending else "it"
    return word.capitalize() if found[0][0].isupper() and found.start() == 0 else word


@cache
def name_pattern(name: str) -> re.Pattern[str]:
    """The class name in any case and spelling, with an article before it and a plural or possessive ending."""
    bare = re.sub(r"\([^)]*\)", " ", name).replace("_", " ").replace("-", " ").split() or [name]
    words = r"[\s_-]+".join(map(re.escape, bare))
    if bare[-1].endswith("y"):
        words = words[:-1] + "(?:y|(?=ies))"
    ending = r"(?P<ending>(?:['\u2019]s|s['\u2019]|es['\u2019]?|s|ies)?)"
    return re.compile(rf"\b(?:(?:an?|the)\s+)?{words}{ending}(?!\w)", re.IGNORECASE)
