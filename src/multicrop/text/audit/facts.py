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

from multicrop.text.audit.audit import Finding, stem
from multicrop.text.audit.claims import Claim, Facts, Lexicon
from multicrop.text.descriptions import FOLDER, DescriptionSet

FACTS = FOLDER / "facts"
EVERY = "*"  # the row with the facts of all classes
TOLD_APART = 3  # phrases that must tell a confusable pair apart


@dataclass(frozen=True)
class FactTable:
    """The facts of every class of a description set, and the words that state them."""

    facts: Mapping[str, Facts]
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
    every = dict(rows.pop(EVERY, {}))
    facts = {key: {**every, **{attribute: values for attribute, values in row.items() if values}} for key, row in rows.items()}
    pairs = [(row["class"], row["other"]) for row in _table("pairs") if row["set"] == name]
    return FactTable(facts, _lexicon(name), pairs)


def fact_defects(source: DescriptionSet) -> Iterator[Finding]:
    """The phrases that contradict the facts of their class, and the confusable pairs with fewer than three phrases that tell them apart."""
    if source.name not in with_facts():
        return
    table = load_fact_table(source.name)
    for key in source.descriptions:
        for phrase in source.texts_of(key):
            for claim in table.contradictions(phrase, key) if key in table.facts else []:
                known = sorted({value for attribute in claim.attributes for value in table.facts[key].get(attribute, ())})
                yield Finding(key, phrase, "contradicts_facts", f"{claim.words}: the facts have {' '.join(known)}")
    for one, other in (pair for pair in table.pairs if source.descriptions.keys() >= {*pair}):
        if (told := len(table.told_apart(source, one, other))) < TOLD_APART:
            yield Finding(one, "", "confusable", f"{told} phrases tell it from {other}, {TOLD_APART} are wanted")


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
    colours = {stem(noun): tuple(parts.split()) for parts, nouns in own.get("colours", {}).items() for noun in nouns}
    values = [
        (re.compile(rf"\b(?:{pattern})\b"), attribute, value)
        for attribute, patterns in own.get("values", {}).items()
        for value, pattern in patterns.items()
    ]
    families = {word: frozenset(families) for word, families in words["colours"].items()}
    parts = {part for row in own.get("colours", {}) for part in row.split()}
    palette = tuple(sorted(parts)) if "other" in parts else ()
    return Lexicon(counts, colours, palette, values, words["numbers"], families)
