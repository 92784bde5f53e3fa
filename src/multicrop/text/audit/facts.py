"""Checks phrases against the fact table of their class: a count, a colour or a word that the table rules out is a contradiction.

`text/descriptions/facts/` has a table per fine-grained set (SET.csv: one row per class, an empty cell is unknown, several values are
alternatives), the words that state a value of an attribute (words.json), and the pairs of classes that are easily confused (pairs.csv).
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from multicrop.text.audit.audit import Finding, stem
from multicrop.text.descriptions import FOLDER, DescriptionSet
from multicrop.text.joins import NOUNS_IN_ING, STOPS

CUTS = STOPS - {"round"}  # "four round lamps"
FACTS = FOLDER / "facts"
SIDES = re.compile(r"\b(?:per|each|either) (?:wing|side|end|corner)\b")
EVERY = "*"  # the row with the facts of all classes

Facts = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Claim:
    """A value that a phrase states for one of several attributes, in its words."""

    attributes: tuple[str, ...]
    values: frozenset[str]
    words: str

    def contradicts(self, facts: Facts) -> bool:
        """Whether the facts know one of the attributes and none of the values."""
        known = frozenset().union(*(facts.get(attribute, frozenset()) for attribute in self.attributes))
        return bool(known) and not known & self.values


@dataclass(frozen=True)
class Lexicon:
    """The words that state a value: nouns that are counted or coloured, and expressions of one value."""

    counts: dict[str, tuple[str, ...]]  # stem or stems of a noun: attributes
    colours: dict[str, str]  # stem of a part: attribute
    values: list[tuple[re.Pattern[str], str, str]]  # expression, attribute, value
    numbers: dict[str, str]
    families: dict[str, frozenset[str]]  # colour word: families

    def claims(self, phrase: str, facts: Facts) -> Iterator[Claim]:
        """The claims of a phrase: counts, colours, and expressions of one value."""
        plain = re.sub(r"['\u2019]s\b", "", phrase.lower())
        if not SIDES.search(plain):
            yield from self._counts(plain)
        yield from self._colours(plain, facts)
        for pattern, attribute, value in self.values:
            if found := pattern.search(plain):
                yield Claim((attribute,), frozenset({value}), found[0])

    def _counts(self, phrase: str) -> Iterator[Claim]:
        """A number and the first counted noun after it, up to a preposition."""
        for segment in self._segments(phrase):
            for start, word in enumerate(segment):
                if word not in self.numbers or segment[start - 1 : start] == ["half"]:
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
            parts = [self.colours.get(stem(word)) for word in segment]
            runs = groupby(enumerate(segment), lambda item: item[1] in self.families)
            for run in (list(items) for coloured, items in runs if coloured):
                start, end = run[0][0], run[-1][0] + 1
                after = segment[end] if end < len(segment) else ""
                if after in SCENERY:
                    continue
                named = [part for part in [*parts[end:], *reversed(parts[:start])] if part]
                near = EDGE if EDGE in parts[end:] else next(iter(named), None)
                known = (near,) if near and facts.get(near) and after not in EDGES else tuple(sorted({*self.colours.values(), OTHER}))
                yield Claim(known, frozenset().union(*(self.families[word] for _, word in run)), " ".join(segment))

    def _segments(self, phrase: str) -> Iterator[list[str]]:
        """The phrase cut at prepositions and commas; "black and white" and "four or six" stay together."""
        words = re.findall(r"[^\W_]+|,", phrase)
        segment: list[str] = []
        for place, word in enumerate(words):
            between = {"and", "or"} & {word} and all(self._is_value(near) for near in words[place - 1 : place + 2 : 2])
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
    return len(word) > 4 and word.endswith("ing") and word not in NOUNS_IN_ING


EDGE = "edge"  # of nouns such as "ring": the ring of an eye has another colour than the eye
OTHER = "other"  # the column of colours without a part of their own
SCENERY = frozenset(["flowers", "foliage", "leaves", "sky", "sea", "tubular", "water"])
EDGES = frozenset(["edged", "washed", "tinged", "tinted", "bordered", "rimmed", "tipped", "flecked", "streaked", "dotted", "spotted"])


@dataclass(frozen=True)
class FactTable:
    """The facts of every class of a description set, and the words that state them."""

    facts: dict[str, Facts]
    lexicon: Lexicon
    pairs: list[tuple[str, str]]

    def contradictions(self, phrase: str, key: str) -> list[Claim]:
        """The claims of a phrase that the facts of a class rule out."""
        return [claim for claim in self.lexicon.claims(phrase, self.facts[key]) if claim.contradicts(self.facts[key])]

    def told_apart(self, source: DescriptionSet, one: str, other: str) -> list[tuple[str, str]]:
        """The (key, phrase) of two classes that the facts of the other class rule out."""
        both = ((key, rival, phrase) for key, rival in ((one, other), (other, one)) for phrase in source.descriptions[key])
        return [(key, phrase) for key, rival, phrase in both if self.contradictions(phrase, rival)]


def with_facts() -> list[str]:
    """The names of the description sets that have a fact table."""
    return sorted(path.stem for path in FACTS.glob("*.csv") if path.stem != "pairs")


@cache
def load_fact_table(name: str) -> FactTable:
    """Load the fact table of a packaged description set.

    Args:
        name: Name of the set, one of ``with_facts``.

    Returns:
        Facts by class, the words of their values, and the confusable pairs.

    Raises:
        ValueError: If the set has no fact table.
    """
    if name not in with_facts():
        raise ValueError(f"the set {name!r} has no fact table; those of {', '.join(with_facts())} have one (add {FACTS / name}.csv)")
    rows = _rows(name)
    every = rows.pop(EVERY, {})
    facts = {key: every | {attribute: values for attribute, values in row.items() if values} for key, row in rows.items()}
    pairs = [(row["class"], row["other"]) for row in _table("pairs") if row["set"] == name]
    return FactTable(facts, _lexicon(name), pairs)


def fact_defects(source: DescriptionSet) -> Iterator[Finding]:
    """The phrases that contradict the facts of their class, and the confusable pairs with fewer than three phrases that tell them apart."""
    if source.name not in with_facts():
        return
    table = load_fact_table(source.name)
    for key, phrases in source.descriptions.items():
        for phrase in phrases:
            for claim in table.contradictions(phrase, key) if key in table.facts else []:
                known = sorted({value for attribute in claim.attributes for value in table.facts[key].get(attribute, ())})
                yield Finding(key, phrase, "contradicts_facts", f"{claim.words}: the facts have {' '.join(known)}")
    for one, other in table.pairs:
        if (told := len(table.told_apart(source, one, other))) < TOLD_APART:
            yield Finding(one, "", "confusable", f"{told} phrases tell it from {other}, {TOLD_APART} are wanted")


TOLD_APART = 3


def _table(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of this folder."""
    with (FACTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _rows(name: str) -> dict[str, Facts]:
    """The values of each attribute by class."""
    return {row.pop("class"): {key: frozenset(cell.split()) for key, cell in row.items()} for row in _table(name)}


def _lexicon(name: str) -> Lexicon:
    """The words of one set and those that all sets share."""
    words = json.loads((FACTS / "words.json").read_text("utf-8"))
    own = words["sets"][name]
    counts: dict[str, tuple[str, ...]] = {}
    for attribute, nouns in own.get("counts", {}).items():
        for noun in nouns:
            stems = " ".join(map(stem, noun.split()))
            counts[stems] = (*counts.get(stems, ()), attribute)
    colours = {stem(noun): part for part, nouns in own.get("colours", {}).items() for noun in nouns}
    values = [
        (re.compile(rf"\b(?:{pattern})\b"), attribute, value)
        for attribute, patterns in own.get("values", {}).items()
        for value, pattern in patterns.items()
    ]
    families = {word: frozenset(families) for word, families in words["colours"].items()}
    return Lexicon(counts, colours, values, words["numbers"], families)
