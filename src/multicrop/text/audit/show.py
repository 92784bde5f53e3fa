"""Shows the texts of a class alone or beside those of another class."""

from collections.abc import Mapping

from multicrop.text.audit.audit import stem, tokens
from multicrop.text.audit.facts import load_fact_table, with_facts
from multicrop.text.descriptions import DescriptionSet
from multicrop.text.joins import STOPS, GlobalText

ALIKE = 0.4  # share of the content words of two phrases from which on they are shown as close
Margins = Mapping[str, Mapping[str, float]]  # class, text


def shown(source: DescriptionSet, key: str, other: str | None = None, *, margins: Margins | None = None) -> list[str]:
    """Lines with the texts of a class, against another class if there is one.

    Args:
        source: Packaged description set.
        key: Key of the class.
        other: Key of the class to compare with; None: the class alone, with the classes that it is confused with.
        margins: Margin of each text of each shown class under an encoder (``margins.margins``), which is printed before it; or None.

    Returns:
        Lines. With ``other``, ``+`` marks a text that the facts of the other class rule out, ``~`` one that is close to a phrase of it.
    """
    numbers = margins or {}
    if other is None:
        texts = [f"  {_number(numbers.get(key), text) or '  '}{_whole(text)}{text}" for text in source.texts_of(key)]
        return [source.classes[key], *texts, *_confused(source, key)]
    lines = [f"{source.name}: + the facts of the other class rule it out, ~ close to a phrase of the other class"]
    for one, rival in ((key, other), (other, key)):
        lines += ["", source.classes[one]]
        for text in source.texts_of(one):
            mark, reason = compared(source, text, rival)
            lines.append(f"  {mark} {_number(numbers.get(one), text)}{_whole(text)}{text}" + (f"  ({reason})" if reason else ""))
    return lines


def compared(source: DescriptionSet, text: str, rival: str) -> tuple[str, str]:
    """The mark of a text against another class and its reason: the words that its facts rule out, or the phrase that it is close to."""
    claims = load_fact_table(source.name).contradictions(text, rival) if source.name in with_facts() else []
    if claims:
        return "+", ", ".join(dict.fromkeys(claim.words for claim in claims))
    close = max(source.descriptions[rival], key=lambda phrase: likeness(text, phrase))
    return ("~", close) if likeness(text, close) >= ALIKE else (" ", "")


def rivals_of(source: DescriptionSet, key: str) -> list[str]:
    """The keys of the classes that a class is confused with."""
    pairs = load_fact_table(source.name).pairs if source.name in with_facts() else []
    return [other if one == key else one for one, other in pairs if key in (one, other)]


def _number(margins: Mapping[str, float] | None, text: str) -> str:
    """The margin of a text as a column, if there are margins."""
    return f"{margins[text]:+.3f}  " if margins else ""


def _whole(text: str) -> str:
    """What stands before a global text."""
    return "whole: " if isinstance(text, GlobalText) else ""


def _confused(source: DescriptionSet, key: str) -> list[str]:
    """A line with the classes that the class is confused with, if there are any."""
    rivals = [source.classes[rival] for rival in rivals_of(source, key)]
    return [f"confused with: {', '.join(rivals)}"] if rivals else []


def likeness(one: str, other: str) -> float:
    """The share of the stems of the content words of two phrases that both have."""
    words, others = ({stem(word) for word in tokens(text) if word not in STOPS} for text in (one, other))
    return len(words & others) / max(1, len(words | others))
