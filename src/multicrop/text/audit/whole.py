"""Checks global texts by the rules of the packaged sets: their number and length, what names the class, and classes with one text."""

from collections.abc import Iterator

from multicrop.text.audit.audit import Finding, phrase_defects, shared
from multicrop.text.descriptions import DescriptionSet

TEXTS = range(1, 3)  # per class
WORDS = range(8, 36)


def global_defects(source: DescriptionSet) -> Iterator[Finding]:
    """Find the defects of the global texts of a description set.

    Args:
        source: Description set.

    Yields:
        Defects class by class: `count` (one or two texts), `length` (8 to 35 words), `leakage`, `negation`, `banned`, `privative` and
        `part_of_name` as for phrases; then `duplicate`, a text that another class has too.
    """
    for key, texts in source.global_texts.items():
        if len(texts) not in TEXTS:
            yield Finding(key, "", "count", f"{len(texts)} global texts")
        for text in texts:
            yield from (Finding(key, text, *defect) for defect in phrase_defects(text, source.classes[key], WORDS))
    for uses in shared(DescriptionSet(source.name, source.classes, source.global_texts), str.casefold):
        yield from (Finding(key, text, "duplicate", f"in {len(uses)} classes") for key, text in uses)
