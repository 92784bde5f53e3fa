"""Joins a phrase to a class name by its part of speech: "which has", "which is", "which", "whose", or as it stands; and "a" or "an"."""

import re

from multicrop.text.speech import PRONOUN, WORDS, head_segment, is_adjective, is_adverb, is_participle, kind, words


def joined(label: str, phrase: str) -> str:
    """The class name with the phrase behind it, as English wants it: `cat, which has a long tail`; `cat, with a long tail`.

    A noun phrase gets "which has" and, where its head is a singular count noun without a determiner, "a" or "an"; an adjective or
    participle "which is"; a verb "which"; a clause of its own ("its legs are long") "whose"; a prepositional phrase stands as it is.
    """
    text = phrase.strip().rstrip(".")
    sort = kind(text)
    text = PRONOUN.sub("", text)
    if sort == "clause":
        return f"{label}, whose {re.sub(r'^(the|its|their|his|her) ', '', text, flags=re.IGNORECASE)}"
    if sort == "noun":
        return f"{label}, which has {with_article(text)}"
    return f"{label}, {'which is ' * (sort in ('adjective', 'participle'))}{'which ' * (sort == 'verb')}{text}"


def with_article(phrase: str) -> str:
    """A noun phrase with "a" or "an" where its head is a singular count noun and no determiner is there."""
    found = words(phrase)
    if not found or found[0] in WORDS["determiners"] | WORDS["numbers"] or found[0][0].isdigit() or not _is_singular(_head(found)):
        return phrase
    return f"{article(phrase)} {phrase}"


def _head(found: list[str]) -> str:
    """The head noun: the last word before a preposition, a comma, an "and" or a participle behind a noun that is not an adjective."""
    segment = head_segment(found)
    for i, word in enumerate(segment[1:], 1):
        noun_before = segment[i - 1] != "," and not is_adjective(segment[i - 1])
        plural = not _is_singular(segment[i - 1])
        if noun_before and plural and word.endswith("er") and found[i + 1 : i + 2] == ["than"]:
            return segment[i - 1]
        if noun_before and (
            word in {"and", "or", "that", "which"} or (is_participle(word) and (plural or not _noun_follows(segment[i + 1 :])))
        ):
            return segment[i - 1]
    while len(segment) > 1 and (is_adverb(segment[-1]) or segment[-1] == ","):
        segment = segment[:-1]
    return segment[-1]


def _noun_follows(rest: list[str]) -> bool:
    return any(not is_adjective(word) or word in WORDS["adjective_like_nouns"] for word in rest)


def _is_singular(noun: str) -> bool:
    last = noun.rsplit("-", 1)[-1]
    if last in WORDS["mass_nouns"] or last in WORDS["plurals"]:
        return False
    return not last.endswith("s") or last.endswith("ss") or last in WORDS["singular_s"]


def article(text: str) -> str:
    """`a` or `an`, by the sound that the text begins with; letters that are spelled out (LED, S-shaped) go by their names."""
    first = next(iter(re.findall(r"[^\W_]+", text)), "")
    if first.isupper() and (len(first) < 2 or not set(first) & set("AEIOU") or len(first) < 4) and first.isalpha():
        return "an" if first[0] in "AEFHILMNORSX" else "a"
    lower = first.lower()
    if lower.startswith(tuple(WORDS["a_vowels"])):
        return "a"
    if re.match(r"(8|11|18)(\D|$)", lower) or lower.startswith(tuple(WORDS["an_consonants"])):
        return "an"
    return "an" if lower[:1] in set("aeiou") else "a"
