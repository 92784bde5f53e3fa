"""Finds where a description set breaks the rules of the packaged ones.

check.py finds what makes texts of any source unfit for a run; the rules here are stricter.
An **error** breaks a rule that every packaged set keeps; a **warning** may be right, so a reader decides.

| defect          | severity | found when                                                                                      |
| --------------- | -------- | ----------------------------------------------------------------------------------------------- |
| count           | error    | a class has fewer than 8 or more than 12 phrases                                                |
| length          | error    | a phrase has fewer than 2 or more than 8 words (a bound on words: CLIP's tokenizer is not here) |
| leakage         | error    | a word of the phrase has the stem of a content word of the class name                           |
| negation        | error    | a negating word (`no`, `without`, `lacks`, ...)                                                 |
| banned          | error    | a word of frequency or praise (`typical`, `often`, `distinctive`, ...) or of a refusal          |
| duplicate       | error    | a phrase twice in a class, word for word                                                        |
| common          | error    | a phrase in more than `max_share` of the classes, and in more than one                          |
| skeleton        | error    | more than `max_skeleton` of all phrases, and more than two, are the same with one word masked   |
| join            | error    | the join word is `a` or `an`, but the noun is a plural or cannot be counted (`a headlights`)    |
| contradicts_facts | error  | a count, a colour or a word contradicts the fact table of the set (facts.py)                    |
| confusable      | warning  | fewer than three phrases tell a confusable pair of the set apart, by its facts (facts.py)       |
| part_of_name    | warning  | a word begins or ends with a content word of the name, or one with it (`ball` of `basketball`)  |
| privative       | warning  | a word in -less or -free (`leafless`)                                                           |
| near_duplicate  | warning  | two phrases, of two classes or of one, are equal up to word order and inflection                |

Content words of a name have three letters or more and are no function word, no colour and no word of `ORDINARY`, and not the
second half of a compound like `Black-billed`, which names a part that phrases must name (its own spelling stays a leak).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from multicrop.text.descriptions import DescriptionSet
from multicrop.text.joins import Phrase, fits, head

PHRASES = range(8, 13)
WORDS = range(2, 9)
ERRORS = frozenset({"count", "length", "leakage", "negation", "banned", "duplicate", "common", "skeleton", "join", "contradicts_facts"})
BLOCKING = frozenset({"no_texts", "ambiguous_name", "empty", "refusal", "too_long"})  # the errors of check.py, which stop a run
FUNCTION_WORDS = frozenset(["a", "an", "and", "de", "in", "of", "on", "or", "the", "to", "with"])
COLOURS = frozenset(
    ["black", "blue", "brown", "gold", "golden", "gray", "green", "grey", "orange", "pink", "purple", "red", "silver", "white", "yellow"]
)
ORDINARY = frozenset(["air", "american", "common", "great", "indoor", "land", "large", "outdoor", "small"])
NEGATION = re.compile(r"\b(no|not|none|nothing|neither|nor|never|without|lacks?|lacking|absent|missing|cannot)\b|n't\b")
BANNED = re.compile(
    r"\b(distinctive|typical|typically|various|often|usually|sometimes|characteristic|unique|generally|commonly|sorry|as an ai|unable)\b"
)
PRIVATIVE = re.compile(r"\b(?!stainless|seamless|endless)\w+less\b|\w+-free\b")


@dataclass(frozen=True, order=True)
class Finding:
    """One defect of one phrase; `key` is empty for a defect of the whole set, `phrase` for one of a class."""

    key: str
    phrase: str
    defect: str
    detail: str = ""

    @property
    def severity(self) -> Literal["error", "warning"]:
        """The severity of the defect, by the table of this module or by that of check.py."""
        return "error" if self.defect in ERRORS | BLOCKING else "warning"


def audit(source: DescriptionSet, *, max_share: float = 0.2, max_skeleton: float = 0.1) -> list[Finding]:
    """Find the defects of a description set by the rules of the packaged ones.

    Args:
        source: Description set.
        max_share: Largest share of the classes that may have one phrase in common.
        max_skeleton: Largest share of the phrases that may be equal up to one word.

    Returns:
        Defects class by class, then those of the whole set; empty if there are none.
    """
    found: list[Finding] = []
    for key, phrases in source.descriptions.items():
        found += class_defects(key, phrases)
        for phrase in phrases:
            found += [Finding(key, phrase, *defect) for defect in phrase_defects(phrase, source.classes[key])]
    return [*found, *common(source, max_share), *near_duplicates(source), *skeletons(source, max_skeleton)]


def class_defects(key: str, phrases: list[str]) -> Iterator[Finding]:
    """The wrong number of phrases, and phrases that repeat an earlier one of the class, word for word or nearly."""
    if len(phrases) not in PHRASES:
        yield Finding(key, "", "count", f"{len(phrases)} phrases")
    for position, phrase in enumerate(phrases):
        earlier = [text for text in phrases[:position] if bag(text) == bag(phrase)]
        if earlier:
            exact = words(phrase) in map(words, earlier)
            yield Finding(key, phrase, "duplicate" if exact else "near_duplicate", earlier[0])


def phrase_defects(phrase: str, name: str, length: range = WORDS) -> Iterator[tuple[str, str]]:
    """The (defect, detail) of one text of the class called `name`, which should have so many words."""
    if len(words(phrase)) not in length:
        yield "length", f"{len(words(phrase))} words"
    yield from name_defects(phrase, name)
    for defect, pattern in (("negation", NEGATION), ("banned", BANNED), ("privative", PRIVATIVE)):
        if match := pattern.search(phrase.lower()):
            yield defect, match.group()
    if isinstance(phrase, Phrase) and not fits(phrase):
        yield "join", f"{phrase.join_word} before {head(phrase)}"


def name_defects(phrase: str, name: str) -> Iterator[tuple[str, str]]:
    """Leakage of a content word of the name, else a word of the phrase that begins or ends with one, or one with it."""
    if leaked := name_stem_words(phrase, name):
        yield "leakage", ", ".join(leaked)
        return
    stems, _ = content_words(name)
    for word in sorted(set(tokens(phrase))):
        if any(is_part(*sorted((stem(word), other), key=len)) for other in stems):
            yield "part_of_name", word


def name_stem_words(phrase: str, name: str) -> list[str]:
    """The words of the phrase with the stem of a content word of the name, sorted."""
    stems, exact = content_words(name)
    return sorted(word for word in set(tokens(phrase)) if stem(word) in stems or word in exact)


def is_part(short: str, long: str) -> bool:
    """Whether the long stem begins or ends with the short one, of four letters or more."""
    return len(short) > 3 and (long.startswith(short) or long.endswith(short))


@cache
def content_words(name: str) -> tuple[set[str], set[str]]:
    """The stems of the content words of a class name, and the `billed` of `Black-billed`, which count as spelled."""
    compounds = set(re.findall(r"-([^\W\d_]+ed)\b", name.lower().replace("_", " ")))
    content = {word for word in tokens(name) if len(word) > 2 and not word.isdigit()} - FUNCTION_WORDS - COLOURS - ORDINARY
    return {stem(word) for word in content - compounds}, content & compounds


def common(source: DescriptionSet, max_share: float) -> Iterator[Finding]:
    """The phrases that more than `max_share` of the classes have."""
    for uses in shared(source, str.casefold):
        classes = len({key for key, _ in uses})
        if classes > max_share * len(source.descriptions):
            yield Finding("", uses[0][1], "common", f"in {classes} classes")


def near_duplicates(source: DescriptionSet) -> Iterator[Finding]:
    """The phrases that another class has too, up to word order and inflection."""
    for uses in shared(source, bag):
        for key, phrase in uses:
            others = [f"{source.classes[other]}: {text}" for other, text in uses if other != key]
            yield Finding(key, phrase, "near_duplicate", "; ".join(others))


def shared(source: DescriptionSet, signature: Callable[[str], Hashable]) -> list[list[tuple[str, str]]]:
    """The (key, phrase) groups of one signature that span more than one class."""
    groups: dict[Hashable, list[tuple[str, str]]] = defaultdict(list)
    for key, phrases in source.descriptions.items():
        for phrase in phrases:
            groups[signature(phrase)].append((key, phrase))
    return [uses for uses in groups.values() if len({key for key, _ in uses}) > 1]


def skeletons(source: DescriptionSet, max_skeleton: float) -> Iterator[Finding]:
    """The phrases with one word masked that more than `max_skeleton` of all phrases, and more than two, have in common."""
    phrases = [words(phrase) for row in source.descriptions.values() for phrase in row]
    masked: Counter[str] = Counter()
    for row in phrases:
        masked.update({" ".join([*row[:i], "*", *row[i + 1 :]]) for i in range(len(row))})
    for skeleton, uses in masked.most_common():
        if uses > max(2, max_skeleton * len(phrases)):
            yield Finding("", skeleton, "skeleton", f"{uses} of {len(phrases)} phrases")


def words(text: str) -> list[str]:
    """The lower-case words; a hyphen or an apostrophe inside joins one word."""
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())


def tokens(text: str) -> list[str]:
    """The lower-case words with compounds and possessives taken apart."""
    return re.findall(r"[^\W_]+", re.sub(r"'s\b", "", text.lower()))


def bag(phrase: str) -> tuple[str, ...]:
    """The stems of the phrase in alphabetical order: equal for phrases that differ in order and inflection."""
    return tuple(sorted(map(stem, tokens(phrase))))


@cache
def stem(word: str) -> str:
    """A crude English stem, for comparing only: leaves = leaf, berries = berry, striped = stripe, spotted = spot."""
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-3] + "y" if word.endswith("ies") and len(word) > 4 else word[:-1]
    for suffix in ("ing", "ed"):
        rest = word.removesuffix(suffix)
        if rest != word and len(rest) > 2 and re.search("[aeiouy]", rest):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "els" else rest
            break
    word = word[:-1] if len(word) > 3 and word.endswith("e") else word
    word = re.sub(r"v$", "f", word)
    return re.sub(r"(?<=[^aeiou])y$", "i", word) if len(word) > 2 else word
