"""Articles and number of English nouns: `a` or `an`, plural, uncountable. The rules are those of the library inflect."""

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import inflect

WORDS = {name: frozenset(words) for name, words in json.loads(Path(__file__).with_name("words.json").read_text("utf-8")).items()}
SPELLED_OUT = re.compile(r"[A-Z]{1,3}|[B-DF-HJ-NP-TV-Z]+")  # abbreviations read letter by letter: LED, MG, S of "S-shaped"
PLURALS = WORDS["plurals"]
SINGULAR_ENDING = re.compile(r"(ss|us|is|'s|wards)$")
SINGULARS = WORDS["singulars"]
PLURAL_IN_S = WORDS["plural_in_s"]  # plurals with the ending of a singular
UNCOUNTABLE = WORDS["uncountable"]


@cache
def _engine() -> "inflect.engine":
    """The library, imported on first use: the import is slow, and packaged descriptions do not need it."""
    import inflect

    return inflect.engine()


@cache
def article(text: str) -> str:
    """`a` or `an`, by the sound of the first word; numbers and abbreviations go by how they are read aloud (an 8, an LED, a UV)."""
    first = next(iter(re.findall(r"[^\W_]+", text)), "")
    if digits := re.match(r"\d+", first):
        first = str(_engine().number_to_words(digits[0]))
    elif SPELLED_OUT.fullmatch(first):
        first = first[0]
    return _engine().a(first).split()[0] if first else "a"


@cache
def is_plural(noun: str) -> bool:
    """Whether the noun (of a compound with a hyphen, its last part) is a plural."""
    last = noun.lower().rsplit("-", 1)[-1]
    if last in PLURALS | PLURAL_IN_S:
        return True
    if last in SINGULARS or SINGULAR_ENDING.search(last):
        return False
    singular = _engine().singular_noun(last)
    return bool(singular) and (singular != last or last.endswith("s"))  # fish, aircraft: the word does not tell


def is_uncountable(noun: str) -> bool:
    """Whether the noun (of a compound with a hyphen, its last part) names a material or a mass, which takes no `a`."""
    return noun.lower().rsplit("-", 1)[-1] in UNCOUNTABLE
