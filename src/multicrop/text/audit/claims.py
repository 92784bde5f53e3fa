"""Reads what a phrase claims: counts of nouns, colours of parts, and expressions that state a value."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from multicrop.text.audit.audit import stem
from multicrop.text.joins import NOUNS_IN_ING, STOPS

CUTS = STOPS - {"round"}  # "four round lamps"
EDGE = ("edge",)  # of nouns such as "ring": the ring of an eye has another colour than the eye
SCENERY = frozenset(["branch", "flowers", "foliage", "leaves", "log", "sea", "sky", "tubular", "water"])
UNCOUNTED = frozenset(["half", "twenty"])  # "half a dozen", "twenty-two"
EDGES = frozenset(
    ["edged", "washed", "tinged", "tinted", "bordered", "rimmed", "tipped", "flecked", "streaked", "framed", "lensed", "dotted", "spotted"]
)  # after a colour: it is on the part, the part is not of it

Facts = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Claim:
    """A value that a phrase states for one of several attributes, in its words."""

    attributes: tuple[str, ...]
    values: frozenset[str]
    words: str

    def contradicts(self, facts: Facts) -> bool:
        """Whether the facts have one of the attributes and none of the values."""
        known = frozenset().union(*(facts.get(attribute, frozenset()) for attribute in self.attributes))
        return bool(known) and not known & self.values


@dataclass(frozen=True)
class Lexicon:
    """The words that state a value: nouns that are counted or coloured, and expressions of one value."""

    counts: dict[str, tuple[str, ...]]  # stem or stems of a noun: attributes
    colours: dict[str, tuple[str, ...]]  # stem of a part: attributes
    palette: tuple[str, ...]  # the attributes that hold all colours of a class; empty where the table has none
    values: list[tuple[re.Pattern[str], str, str]]  # expression, attribute, value
    numbers: dict[str, str]
    families: dict[str, frozenset[str]]  # colour word: families

    def claims(self, phrase: str, facts: Facts) -> Iterator[Claim]:
        """The claims of a phrase: counts, colours, and expressions of one value."""
        plain = re.sub(r"['\u2019]s\b", "", phrase.lower())
        yield from self._counts(plain)
        yield from self._colours(plain, facts)
        for pattern, attribute, value in self.values:
            if found := pattern.search(plain):
                yield Claim((attribute,), frozenset({value}), found[0])

    def _counts(self, phrase: str) -> Iterator[Claim]:
        """A number and the first counted noun after it, up to a preposition."""
        for segment in self._segments(phrase):
            for start, word in enumerate(segment):
                if word not in self.numbers or UNCOUNTED & {*segment[max(0, start - 2) : start]}:
                    continue
                stems = [stem(token) for token in self._counted(segment, start)]
                nouns = ((" ".join(stems[i : i + size]), i + size) for i in range(len(stems)) for size in (2, 1))
                if named := next(((noun, end) for noun, end in nouns if noun in self.counts), None):
                    words = " ".join(segment[start : start + 1 + named[1]])
                    yield Claim(self.counts[named[0]], frozenset({self.numbers[word]}), words)

    def _counted(self, segment: list[str], start: int) -> list[str]:
        """The words after a number, up to the next number that is no alternative to it (`four or six`)."""
        places = range(start + 1, len(segment))
        end = next((i for i in places if segment[i] in self.numbers and segment[i - 1] not in ("or", "to")), len(segment))
        return segment[start + 1 : end]

    def _colours(self, phrase: str, facts: Facts) -> Iterator[Claim]:
        """A colour ("blue-gray" is one) and the first part after it, else the last before it; without a known part, any of the class."""
        for segment in self._segments(phrase) if self.colours else ():
            for start, end in self._coloured(segment):
                after = segment[end] if end < len(segment) else ""
                if after in SCENERY:
                    continue
                part = self._part_of_colour(segment, start, end)
                attributes = part if any(map(facts.get, part)) and after not in EDGES else self.palette
                if attributes:
                    families = frozenset().union(*(self.families[word] for word in segment[start:end]))
                    yield Claim(attributes, families, " ".join(segment))

    def _coloured(self, segment: list[str]) -> Iterator[tuple[int, int]]:
        """The start and end of each run of colour words."""
        for is_colour, items in groupby(range(len(segment)), lambda place: segment[place] in self.families):
            if is_colour:
                places = list(items)
                yield places[0], places[-1] + 1

    def _part_of_colour(self, segment: list[str], start: int, end: int) -> tuple[str, ...]:
        """The attributes of the part that the colour words from `start` to `end` describe; empty without a known part."""
        parts = [self.colours.get(stem(word), ()) for word in segment]
        if EDGE in parts[end:]:
            return EDGE
        return next((part for part in [*parts[end:], *reversed(parts[:start])] if part), ())

    def _segments(self, phrase: str) -> Iterator[list[str]]:
        """The phrase cut at prepositions and commas; "black and white" and "four or six" stay together."""
        words = re.findall(r"[^\W_]+|,", phrase)
        segment: list[str] = []
        for place, word in enumerate(words):
            before = place > 0 and self._is_value(words[place - 1])
            between = before and (word == "of" or (word in ("and", "or") and self._is_value("".join(words[place + 1 : place + 2]))))
            if (word in CUTS or _is_verb(word)) and not between:
                yield segment
                segment = []
            else:
                segment.append(word)
        yield segment

    def _is_value(self, word: str) -> bool:
        """Whether the word is a number or a colour."""
        return word in self.numbers or word in self.families


def _is_verb(word: str) -> bool:
    """Whether the word is a verb in -ing, which ends what a colour or a number belongs to."""
    return len(word) > 4 and word.endswith("ing") and not word.endswith("wing") and word not in NOUNS_IN_ING
