"""Joins a description to a class name: `cat, which has a long tail`. A phrase brings its join word, or gets one by the rules for nouns."""

import re

from multicrop.text.nouns import WORDS, article, is_plural, is_uncountable

JOINS = {
    "a": "which has a ",
    "an": "which has an ",
    "has": "which has ",
    "is": "which is ",
    "is a": "which is a ",
    "is the": "which is the ",
    "which": "which ",
    "whose": "whose ",
    "with": "",  # the phrase begins with its own preposition
}
PREPOSITIONS = WORDS["prepositions"]
STOPS = PREPOSITIONS | {"and", "or", ","}
OPENING = PREPOSITIONS - WORDS["not_opening"]
VERBS = WORDS["verbs"]
NOUNS_IN_ING = WORDS["nouns_in_ing"]
BEING = WORDS["being"]
DETERMINERS = WORDS["determiners"]
PARTICIPLES = WORDS["participles"]
ADVERB = re.compile(r"(\w{3,}ly|also|often|sometimes)$")
PRONOUN = re.compile(r"^(which|that|who|it|they|he|she)\s+(?=\w)", re.IGNORECASE)


class Phrase(str):
    """A description with the join word that a person or a reviewed file gave it; as a text, the description alone."""

    join_word: str

    def __new__(cls, text: str, join_word: str) -> "Phrase":
        """The text with its join word."""
        made = super().__new__(cls, text)
        made.join_word = join_word
        return made

    def __getnewargs__(self) -> tuple[str, str]:
        """The arguments that a copy is made from."""
        return str(self), self.join_word


class GlobalText(str):
    """A description of the whole (what it is, where, from which side); it follows a class name after a comma, whatever the join."""

    def __repr__(self) -> str:
        """With the kind, as caches are keyed by it and a local text may have the same words."""
        return f"GlobalText({str(self)!r})"


def parsed(stored: str) -> str:
    """A text of a file: `a|long tail` is the phrase `long tail` with the join word `a`; a text without a join word stays as it is."""
    join, bar, text = stored.partition("|")
    return Phrase(text, join) if bar and join in JOINS else stored


def stored(text: str) -> str:
    """The text as a file holds it, with its join word if it has one."""
    return f"{text.join_word}|{text}" if isinstance(text, Phrase) else text


def with_join(text: str) -> Phrase:
    """The phrase with its own join word, or with the one that the rules for nouns give it."""
    if isinstance(text, Phrase):
        return text
    join, rest = _by_rule(text.strip().rstrip("."))
    return Phrase(rest, join)


def like(text: str, source: str) -> str:
    """A changed spelling of `source`, with its join word, and global where it is."""
    if isinstance(source, GlobalText):
        return GlobalText(text)
    return Phrase(text, source.join_word) if isinstance(source, Phrase) else text


def joined(label: str, phrase: str) -> str:
    """Join a description to a class name.

    Args:
        label: Class name.
        phrase: Description; its join word if it is a ``Phrase``, else the rules for nouns decide.

    Returns:
        A text such as ``cat, which has a long tail`` or ``cat, with a long tail``.
    """
    ready = with_join(phrase)
    return f"{label}, {JOINS[ready.join_word]}{ready}"


def head(phrase: str) -> str:
    """The noun that an article agrees with: the last word before a preposition, a comma, "and", "or" or a verb in -ing."""
    words = _words(phrase)
    return words[_noun_end(words) - 1] if words else ""


def fits(phrase: Phrase) -> bool:
    """Whether the join word agrees with the noun: `a` and `an` stand before neither a plural nor an uncountable noun."""
    words = _words(phrase)
    if phrase.join_word not in ("a", "an") or not words or words[0].endswith(("'s", "\u2019s")) or words[0] in DETERMINERS:
        return True
    end = _noun_end(words)
    ends_noun = end == len(words) or words[end] in PREPOSITIONS  # "glass folding door" and "iron and glass roof" are not uncountable
    return not is_plural(words[end - 1]) and not (ends_noun and is_uncountable(words[end - 1]))


def _noun_end(words: list[str]) -> int:
    """The number of words up to the head noun."""
    stops = (i for i, word in enumerate(words) if i and (word in STOPS or (word.endswith("ing") and word not in NOUNS_IN_ING)))
    return next(stops, len(words))


def _by_rule(text: str) -> tuple[str, str]:
    """(join word, phrase) of a phrase without one: verbs, prepositions and participles by its first word, else a noun phrase."""
    rest = PRONOUN.sub("", text)
    words = _words(rest)
    first = next((word for word in words if not ADVERB.match(word)), "")
    if rest != text or first in VERBS:
        return "which", rest
    if words and words[0] in OPENING:
        return "with", text
    if _is_clause(words):
        return "whose", re.sub(r"^(the|its|their|his|her) ", "", text, flags=re.IGNORECASE)
    after = words[words.index(first) + 1 :] if first else []
    if (first in PARTICIPLES or re.search(r"..(ed|ing)$", first)) and (not after or after[0] in PREPOSITIONS):
        return "is", text
    return _noun_join(text, words), text


def _noun_join(text: str, words: list[str]) -> str:
    """`a` or `an` for a singular noun that can be counted, `has` for a plural, an uncountable noun, and a noun with a determiner."""
    if not words or words[0] in DETERMINERS or words[0][0].isdigit():
        return "has"
    end = next((i for i, word in enumerate(words) if i and word in PREPOSITIONS), len(words))
    heads = [part.split()[-1] for part in re.split(r" , | and | or |,", " ".join(words[:end])) if part.split()]
    if any(map(is_plural, words[:end])) or any(map(is_uncountable, heads)):
        return "has"
    return article(text)


def _is_clause(words: list[str]) -> bool:
    """Whether a verb follows a subject (`its legs are long`), before any conjunction."""
    for word in words[1:]:
        if word in {"as", "than", "that", "when", "where", "which", "while", "who", "whose"}:
            return False
        if word in BEING:
            return True
    return False


def _words(text: str) -> list[str]:
    """The lower-case words and commas; a hyphen or an apostrophe inside joins one word."""
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*|,", text.lower())
