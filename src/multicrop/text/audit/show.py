"""Shows the phrases of a class alone or beside those of another class."""

from multicrop.text.audit.audit import stem, tokens
from multicrop.text.audit.facts import load_fact_table, with_facts
from multicrop.text.descriptions import DescriptionSet
from multicrop.text.joins import STOPS

ALIKE = 0.4  # share of the content words of two phrases from which on they are shown as close


def shown(source: DescriptionSet, key: str, other: str | None = None) -> list[str]:
    """Lines with the phrases of a class, against another class if there is one.

    Args:
        source: Packaged description set.
        key: Key of the class.
        other: Key of the class to compare with; None: the class alone, with the classes that it is confused with.

    Returns:
        Lines. With ``other``, ``+`` marks a phrase that the facts of the other class rule out, ``~`` one that is close to a phrase of it.
    """
    if other is None:
        return [source.classes[key], *(f"    {phrase}" for phrase in source.descriptions[key]), *_confused(source, key)]
    lines = [f"{source.name}: + the facts of the other class rule it out, ~ close to a phrase of the other class"]
    for one, rival in ((key, other), (other, key)):
        lines += ["", source.classes[one], *(_line(source, phrase, rival) for phrase in source.descriptions[one])]
    return lines


def _line(source: DescriptionSet, phrase: str, rival: str) -> str:
    """A phrase with its mark against another class, and the reason."""
    claims = load_fact_table(source.name).contradictions(phrase, rival) if source.name in with_facts() else []
    if claims:
        return f"  + {phrase}  ({', '.join(dict.fromkeys(claim.words for claim in claims))})"
    close = max(source.descriptions[rival], key=lambda text: likeness(phrase, text))
    return f"  ~ {phrase}  ({close})" if likeness(phrase, close) >= ALIKE else f"    {phrase}"


def _confused(source: DescriptionSet, key: str) -> list[str]:
    """A line with the classes that the class is confused with, if there are any."""
    pairs = load_fact_table(source.name).pairs if source.name in with_facts() else []
    rivals = [source.classes[other if one == key else one] for one, other in pairs if key in (one, other)]
    return [f"confused with: {', '.join(rivals)}"] if rivals else []


def likeness(one: str, other: str) -> float:
    """The share of the stems of the content words of two phrases that both have."""
    words, others = ({stem(word) for word in tokens(text) if word not in STOPS} for text in (one, other))
    return len(words & others) / max(1, len(words | others))
