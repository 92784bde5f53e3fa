"""The part of speech of a phrase, by rule: word lists (words.json) and endings, without a model.

Words that no list and no ending knows are taken for nouns, as most phrases about parts are noun phrases.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["noun", "adjective", "participle", "preposition", "verb", "clause"]
KINDS = get_args(Kind)
WORDS = {name: frozenset(words) for name, words in json.loads(Path(__file__).with_name("words.json").read_text("utf-8")).items()}
PRONOUN = re.compile(r"^(which|that|who|it|they|he|she)\s+(?=\w)", re.IGNORECASE)
ADJECTIVE_ENDING = re.compile(r"(ish|ous|ful|less|able|ible|ical|ial|ual|ive|ic|like|-shaped|-sized|-free|esque)$")
JOINING = {"and", "or", "but", "yet", "nor", "to"}
PARTICLES = {"down", "inside", "off", "out", "outside", "past", "up"}  # prepositions that are one only before a determiner
SUBORDINATE = {"as", "than", "that", "when", "where", "which", "while", "who", "whose"}
MODALS = {"can", "do", "does", "may", "might", "must", "will"}
AFTER_MODAL = ("appear", "be", "have", "range", "reach", "vary")
NOUN_TAILS = ("eed", "string", "wing", "thing", "fish", "belly", "shed")


@cache
def kind(phrase: str) -> Kind:
    """The part of speech of a phrase, by rule."""
    found = words(PRONOUN.sub("", phrase.strip()))
    if not found:
        return "noun"
    start = next((i for i, word in enumerate(found) if word in WORDS["adjectives"] or not is_adverb(word)), 0)
    first, rest = found[start], found[start + 1 :]
    if first in WORDS["auxiliaries"] or PRONOUN.match(phrase.strip()):
        return "verb"
    if _starts_with_verb(first, rest):
        return "verb"
    if found[:2] == ["up", "to"]:
        return "adjective"
    if first in WORDS["prepositions"] and _governs(first, rest):
        return "preposition"
    if _is_clause(found):
        return "clause"
    if is_participle(first) and (not rest or _opens(rest[0], ",".join(rest))):
        return "participle"
    return "adjective" if _all_adjectives(found) else "noun"


def words(text: str) -> list[str]:
    """The lower-case words and commas of a text; a hyphen or an apostrophe inside joins one word."""
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*|,", text.lower())


def is_adverb(word: str) -> bool:
    """Whether a word is an adverb, by the list or in -ly."""
    return word in WORDS["adverbs"] or (
        word.endswith("ly")
        and len(word) > 4
        and not word.endswith(NOUN_TAILS)
        and word not in WORDS["adjectives"] | WORDS["never_adjective"]
    )


def _starts_with_verb(first: str, rest: list[str]) -> bool:
    """A finite verb; one that may be a plural noun (`stands`) only before a determiner or a preposition other than "of"."""
    if first not in WORDS["verbs"]:
        return False
    if first in WORDS["verb_nouns"]:
        return bool(rest) and (rest[0] in WORDS["determiners"] or (rest[0] in {"upright", "still", "up", "out"}))
    return True


def _governs(first: str, rest: list[str]) -> bool:
    """Whether a preposition at the start governs what follows, and is not a modifier as in `outside tables` or `up and down pairs`."""
    if not rest or rest[0] in JOINING or first == "about":
        return False
    return first not in PARTICLES or rest[0] in WORDS["determiners"] | {"of"}


def _is_clause(found: list[str]) -> bool:
    """A finite auxiliary behind a subject (`its legs are long`), but not behind `than`, `where` and their like."""
    for i, word in enumerate(found[1:], 1):
        if word in SUBORDINATE:
            return False
        if word in WORDS["auxiliaries"] - MODALS or (word in MODALS and found[i + 1 : i + 2] in ([verb] for verb in AFTER_MODAL)):
            return True
    return False


def is_participle(word: str) -> bool:
    """Whether a word is a participle, by the list or in -ing or -ed."""
    last = word.rsplit("-", 1)[-1]
    if word in WORDS["participles"]:
        return True
    if last.endswith(NOUN_TAILS):
        return False
    if last.endswith("ing") and len(last) > 4:
        return last not in WORDS["ing_nouns"]
    return last.endswith("ed") and len(last) > 3 and last not in WORDS["ed_nouns"]


def _opens(word: str, rest: str) -> bool:
    """Whether this word after a participle shows that it governs what follows: a preposition, a particle, a determiner, an adverb."""
    governs = word in WORDS["particles"] or word in WORDS["prepositions"] or word in WORDS["determiners"] | {"down", ","}
    return governs or (is_adverb(word) and _all_adjectives(rest.split(",")))


def is_adjective(word: str) -> bool:
    """Whether a word can be an adjective, by the list or by its ending."""
    if word in WORDS["adjectives"] or is_adverb(word):
        return True
    tail = word.rsplit("-", 1)[-1]
    if "-" in word and (tail in WORDS["adjectives"] or tail == "tone"):
        return True
    if {word, tail} & WORDS["never_adjective"] or tail.endswith(NOUN_TAILS):
        return False
    return is_participle(word) or bool(ADJECTIVE_ENDING.search(word) and len(word) > 4)


def _all_adjectives(found: list[str]) -> bool:
    """No noun before the first preposition; `white front` ends in a word that is a noun behind an adjective."""
    segment = head_segment(found)
    if len(segment) < len(found) and segment[0] in WORDS["adjective_like_nouns"] and len(segment) == 2 and is_participle(segment[1]):
        return False
    if found[len(segment) : len(segment) + 1] == ["of"]:
        return False
    if 2 < len(segment) < len(found) and is_participle(segment[-1]):
        segment = segment[:-1]
    content = [word for word in segment if word not in JOINING and word != "," and not is_adverb(word)]
    if not content:
        return any(is_adverb(word) for word in segment)
    if any(word in WORDS["determiners"] | WORDS["numbers"] - {"half", "double"} for word in segment[:1]) and segment[0] not in {
        "all",
        "no",
    }:
        return False
    if not all(is_adjective(word) for word in content):
        return False
    before = segment[segment.index(content[-1]) - 1] if segment.index(content[-1]) else ""
    return content[-1] not in WORDS["adjective_like_nouns"] or len(content) == 1 or before in JOINING | {","} or _colour(content)


def _colour(content: list[str]) -> bool:
    """`pale golden brown`, `all black`: shades before a colour leave it an adjective."""
    shades = {"pale", "dark", "light", "bright", "deep", "dull", "vivid", "soft", "all", "pure", "dusky", "glossy", "creamy"}
    last = {"white", "black", "red", "green", "blue", "yellow", "brown", "grey", "gray", "pink", "purple", "orange", "tan", "cream", "buff"}
    return content[-1] in last and all(word in shades or word.endswith("ish") or word in last for word in content[:-1])


def head_segment(found: list[str]) -> list[str]:
    """The words up to the first preposition that is not the first word, or the first comma behind a noun."""
    for i, word in enumerate(found[1:], 1):
        if word in WORDS["prepositions"] and word != "like" and not (word == "to" and all(map(is_adjective, found[i + 1 : i + 2]))):
            return found[:i]
        if word == "," and not all(w == "," or is_adjective(w) for w in found[:i]):
            return found[:i]
    return found
