"""Random words and random characters in place of descriptions: the control that any "descriptions help" claim needs."""

import json
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from multicrop.text.audit.audit import words
from multicrop.text.descriptions import FOLDER
from multicrop.text.prompts import joined_text
from multicrop.text.sources import class_texts
from multicrop.text.templates import fill

KINDS = ("words", "characters", "both")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
USUAL = (3, 6)  # words of a text, characters of a word, where no descriptions say
MOST_CHARACTERS = 10  # of a text of random characters: each may cost a token


def waffle(
    class_names: Sequence[str],
    descriptions: Mapping[str, list[str]],
    *,
    template: str,
    join: str,
    kind: str,
    count: int | None,
    shared: bool,
    waffle_seed: int,
    with_label: bool = True,
    bank: str | None = None,
    file: str | None = None,
    class_keys: Sequence[str] | None = None,
) -> list[list[str]]:
    """The label prompt, then random texts (WaffleCLIP, Roth et al., 2023), drawn by (`waffle_seed`, class or not, slot).

    `count` random texts a class; null gives each class as many as it has descriptions (its own, those of `bank` or `file`), each of as many
    words as the one that it stands for (random characters: as many as fit in 10). `kind` is `words` (from the packaged banks' phrases),
    `characters`, or `both` in turn. `shared` gives every class the same texts. Raises ValueError for knobs out of range, and for null
    `count` without descriptions.
    """
    if kind not in KINDS:
        raise ValueError(f"prompt.kind is one of {', '.join(KINDS)}, got {kind!r}")
    if count is not None and count < 1:
        raise ValueError(f"prompt.count is the number of random texts a class, 1 or more, or null to match the descriptions; got {count}")
    if count is None:
        rows = class_texts(class_names, descriptions, bank=bank, file=file, class_keys=class_keys)
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
    """A random text with the number of words of `model`; the name is a part of the key."""
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
    """The words of three letters or more in the phrases of the packaged banks, sorted."""
    found: set[str] = set()
    for path in sorted(FOLDER.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["descriptions"].values():
            found.update(word for phrase in row for word in words(phrase) if len(word) > 2 and word.isalpha() and word.isascii())
    return tuple(sorted(found))
