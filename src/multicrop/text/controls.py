"""Random words and characters in place of descriptions: the control for any claim that descriptions help."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated

import numpy as np

from multicrop.config.ranges import Count, OneOf, Seed, Template
from multicrop.text.audit.audit import words
from multicrop.text.descriptions import available, load_description_set
from multicrop.text.prompts import joined_text
from multicrop.text.sources import class_texts
from multicrop.text.templates import fill

KINDS = ("words", "characters", "both")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
USUAL = (3, 6)  # words of a text, characters of a word, where there are no descriptions to follow
MOST_CHARACTERS = 10  # of a text of random characters: each may cost a token


def waffle(
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    *,
    template: Template,
    join: str,
    kind: Annotated[str, OneOf(KINDS)],
    count: Count | None,
    shared: bool,
    waffle_seed: Seed,
    with_label: bool = True,
    description_set: str | None = None,
    file: str | None = None,
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """Make the label prompt and random texts (WaffleCLIP, Roth et al., 2023).

    Args:
        class_names: Class names, in the order of the labels.
        descriptions: Descriptions of the data set itself, by class name.
        template: Template of the label prompt.
        join: Text with the fields of ``described``.
        kind: ``"words"`` (drawn from the packaged description sets), ``"characters"``, or ``"both"`` in turn.
        count: Random texts per class; None: as many as the class has descriptions, each of as many words as the one that it replaces
            (random characters: as many as fit in 10).
        shared: Whether all classes get the same texts.
        waffle_seed: Seed; a text depends on it, on its position and, unless `shared`, on the class name.
        with_label: False: the random texts stand alone.
        description_set: Packaged description set whose number and length of texts are matched.
        file: JSON file whose number and length of texts are matched.
        class_keys: Stable key of each class.

    Returns:
        Prompts per class; the label prompt is first.

    Raises:
        ValueError: If an argument is out of range, or `count` is None and a class has no descriptions.
    """
    if kind not in KINDS:
        raise ValueError(f"prompt.kind is one of {', '.join(KINDS)}, got {kind!r}")
    if count is not None and count < 1:
        raise ValueError(f"prompt.count is the number of random texts per class, 1 or more, or null to match the descriptions; got {count}")
    if count is None:
        rows = class_texts(class_names, descriptions, description_set=description_set, file=file, class_keys=class_keys)
    else:
        rows = [[" ".join(["x" * USUAL[1]] * USUAL[0])] * count for _ in class_names]
    if shared:
        longest = max(rows, key=len)
        rows = [longest[: len(row)] for row in rows]
    made = []
    for name, row in zip(class_names, rows, strict=True):
        texts = [_random_text(text, kind, slot, [waffle_seed, slot], "" if shared else name) for slot, text in enumerate(row)]
        label = fill(template, name)
        made.append([label, *(joined_text(join, name, label, text) if with_label else text for text in texts)])
    return made


def _random_text(model: str, kind: str, slot: int, seed: Sequence[int], name: str) -> str:
    """A random text with the number of words of `model`, drawn by seed and class name."""
    rng = np.random.default_rng([*seed, *name.encode()])
    lengths = [len(word) for word in model.split()] or [USUAL[1]]
    if kind == "words" or (kind == "both" and slot % 2 == 0):
        return " ".join(rng.choice(vocabulary(), len(lengths)).tolist())
    kept, total = [], 0
    for length in lengths:
        if kept and total + length > MOST_CHARACTERS:
            break
        kept.append(min(length, MOST_CHARACTERS))
        total += length
    return " ".join("".join(rng.choice(list(CHARACTERS), length)) for length in kept)


@cache
def vocabulary() -> tuple[str, ...]:
    """The words of three letters or more in the packaged description sets, sorted."""
    found: set[str] = set()
    for name in available():
        for row in load_description_set(name).descriptions.values():
            found.update(word for phrase in row for word in words(phrase) if len(word) > 2 and word.isalpha() and word.isascii())
    return tuple(sorted(found))
