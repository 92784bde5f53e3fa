"""Plants errors in the phrases of the sets with a fact table and measures how well the fact check finds them; writes planted.csv."""

import argparse
import csv
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from multicrop.files import atomic
from multicrop.text.audit.audit import bag
from multicrop.text.audit.facts import FactTable, load_fact_table, with_facts
from multicrop.text.descriptions import DescriptionSet, load_description_set

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: value for value, word in enumerate(WORDS, 1)} | {"single": 1, "twin": 2, "double": 2, "paired": 2, "dual": 2}
NUMBERS |= {"triple": 3, "quad": 4, "sixteen": 16, "twenty": 20}
COUNTS = ("two", "three", "four", "five", "six", "seven", "eight")
COLOURS = ("black", "white", "gray", "blue", "green", "yellow", "orange", "red", "pink", "purple", "brown")

Planted = Iterator[tuple[str, str, str]]  # class, phrase as written, phrase with the error


def swapped_counts(source: DescriptionSet, table: FactTable, draw: random.Random) -> Planted:
    """Every phrase with a number word, with another number in its place."""
    words = re.compile(r"\b(?:" + "|".join(NUMBERS) + r")\b", re.IGNORECASE)
    for key, phrase in phrases(source):
        if found := words.search(phrase):
            other = draw.choice([word for word in COUNTS if NUMBERS[word] != NUMBERS[found[0].lower()]])
            yield key, phrase, replaced(phrase, found, other)


def swapped_colours(source: DescriptionSet, table: FactTable, draw: random.Random) -> Planted:
    """Every phrase with a colour word, with a colour of another family in its place."""
    families = table.lexicon.families
    words = re.compile(r"\b(?:" + "|".join(families) + r")\b", re.IGNORECASE)
    for key, phrase in phrases(source):
        if found := words.search(phrase):
            other = draw.choice([word for word in COLOURS if not families[word] & families[found[0].lower()]])
            yield key, phrase, replaced(phrase, found, other)


def of_a_random_class(source: DescriptionSet, table: FactTable, draw: random.Random) -> Planted:
    """Every phrase, and a phrase of another class in its place."""
    keys = list(source.descriptions)
    for key, phrase in phrases(source):
        other = draw.choice([rival for rival in keys if rival != key])
        yield key, phrase, draw.choice(source.descriptions[other])


def of_the_nearest_class(source: DescriptionSet, table: FactTable, draw: random.Random) -> Planted:
    """Every phrase of a class of a confusable pair, and a phrase of the other class of the pair in its place."""
    for one, other in table.pairs:
        for key, rival in ((one, other), (other, one)):
            for phrase in source.descriptions[key]:
                yield key, phrase, draw.choice(source.descriptions[rival])


PLANTS: dict[str, Callable[[DescriptionSet, FactTable, random.Random], Planted]] = {
    "count": swapped_counts,
    "colour": swapped_colours,
    "random class": of_a_random_class,
    "nearest class": of_the_nearest_class,
}


def phrases(source: DescriptionSet) -> Iterator[tuple[str, str]]:
    for key, row in source.descriptions.items():
        for phrase in row:
            yield key, str(phrase)


def replaced(phrase: str, found: re.Match[str], word: str) -> str:
    return phrase[: found.start()] + word + phrase[found.end() :]


def auc(right: list[int], wrong: list[int]) -> float:
    """The probability that a wrong phrase has more contradictions than a right one; ties count half."""
    good, bad = Counter(right), Counter(wrong)
    above = sum(n * m * ((b > a) + 0.5 * (b == a)) for a, n in good.items() for b, m in bad.items())
    return above / (len(right) * len(wrong))


def measured(name: str, plant: str, seed: int, draws: int) -> tuple[list[int], list[int]]:
    """The contradictions of the phrases as written and with an error, over several draws of the errors."""
    source, table = load_description_set(name), load_fact_table(name)
    right, wrong = [], []
    for at in range(draws):
        for key, phrase, error in PLANTS[plant](source, table, random.Random(f"{seed} {at} {plant}")):
            if bag(phrase) != bag(error):
                right.append(len(table.contradictions(phrase, key)))
                wrong.append(len(table.contradictions(error, key)))
    return right, wrong


def row(name: str, plant: str, scores: list[tuple[list[int], list[int]]]) -> list[object]:
    right = [score for good, _ in scores for score in good]
    wrong = [score for _, bad in scores for score in bad]
    if not wrong:
        return [name, plant, 0, "", "", ""]
    found, false = (sum(map(bool, side)) / len(side) for side in (wrong, right))
    return [name, plant, len(wrong), f"{found:.3f}", f"{false:.3f}", f"{auc(right, wrong):.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=3, help="errors drawn per phrase")
    args = parser.parse_args()
    scores = {(name, plant): measured(name, plant, args.seed, args.draws) for plant in PLANTS for name in with_facts()}
    rows = [row(name, plant, [scores[name, plant]]) for name, plant in scores]
    rows += [row("all", plant, [scores[name, plant] for name in with_facts()]) for plant in PLANTS]
    with atomic(args.out / "planted.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "error", "phrases", "found", "false_alarms", "auc"])
        writer.writerows(rows)
    for cells in rows:
        print(*cells, sep="\t")


if __name__ == "__main__":
    main()
