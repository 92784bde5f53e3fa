"""The splits of a data set: their spellings, and a drawn split where the data have none."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from multicrop.files import content_hash

Item = TypeVar("Item")
SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def divided(items: Mapping[str, Sequence[Item]], test_share: float, seed: int) -> tuple[dict[str, list[Item]], dict[str, list[Item]]]:
    """(train, test) parts of each class by a permutation keyed by (seed, class); each gets at least one item of two or more."""
    train, test = {}, {}
    for name, members in items.items():
        order = np.random.default_rng(int(content_hash(seed, name)[:15], 16)).permutation(len(members))
        count = min(max(1, round(len(members) * test_share)), max(1, len(members) - 1))
        test[name] = [members[i] for i in sorted(order[:count])]
        train[name] = [members[i] for i in sorted(order[count:])]
    return train, test
