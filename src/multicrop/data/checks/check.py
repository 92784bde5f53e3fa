"""One pass over a data set: counts, sizes, unreadable files, duplicates between splits, and a few pictures of each class."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from PIL import Image

from multicrop.data.base import Dataset, LabelledImages, StreamedImages
from multicrop.data.checks.duplicates import Pair, Print, between_splits, fingerprint
from multicrop.data.images import ImageError

SPLITS = ("train", "validation", "test")
CELL = 96  # pixels of a picture on the sheet


@dataclass
class SplitFacts:
    """The results of one split."""

    counts: Counter = field(default_factory=Counter)  # readable images per label
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (width, height)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (id, reason)


@dataclass
class Findings:
    """The results of all splits."""

    dataset: Dataset
    splits: dict[str, SplitFacts]
    pairs: list[Pair]
    pictures: dict[int, list[Image.Image]]  # a few small test images per label

    @property
    def wrong(self) -> list[str]:
        """Problems that should be solved before the data set is used."""
        said = [f"{len(facts.unreadable)} images of {split} cannot be read" for split, facts in self.splits.items() if facts.unreadable]
        kinds = Counter((pair.kind, pair.first[0], pair.second[0]) for pair in self.pairs)
        return said + [f"{count} {kind} duplicates between {a} and {b}" for (kind, a, b), count in kinds.items()]

    def as_json(self) -> dict:
        """The report: counts per class, sizes, unreadable images with reasons, duplicates."""
        names = self.dataset.class_names
        splits = {
            split: {
                "images": len(facts.sizes),
                "classes": {name: facts.counts[label] for label, name in enumerate(names)},
                "width": spread([w for w, _ in facts.sizes]),
                "height": spread([h for _, h in facts.sizes]),
                "unreadable": [{"id": image_id, "reason": reason} for image_id, reason in facts.unreadable],
            }
            for split, facts in self.splits.items()
        }
        pairs = [
            {"kind": pair.kind, "first": list(pair.first), "second": list(pair.second), "distance": round(pair.distance, 2)}
            for pair in self.pairs
        ]
        return {"dataset": self.dataset.name, "wrong": self.wrong, "splits": splits, "duplicates": pairs}


def spread(values: list[int]) -> dict[str, float | int]:
    """Minimum, median and maximum; empty for no values."""
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)} if values else {}


def check(dataset: Dataset, *, threads: int, per_class: int, step: Callable[[str, int | None], None]) -> Findings:
    """Open every image of a data set once.

    Args:
        dataset: The data set.
        threads: Number of images opened at once.
        per_class: Number of test images per class that are kept as small pictures.
        step: Called with (split, number of images or None) before a split, and with (split, 1) after each image.

    Returns:
        Counts, sizes, unreadable images, duplicates between splits, and the small pictures.
    """
    splits, prints, pictures = {}, [], {}
    for split in SPLITS:
        images = getattr(dataset, split)
        if images.indexed is True and not len(images):
            continue
        facts = splits[split] = SplitFacts()
        for image_id, label, found in _opened(images, threads, step, split):
            if isinstance(found, str):
                facts.unreadable.append((image_id, found))
                continue
            facts.counts[label] += 1
            facts.sizes.append(found.size)
            prints.append(found.print)
            kept = pictures.setdefault(label, []) if split == "test" else []
            if len(kept) < per_class:
                kept.append(found.small)
    return Findings(dataset, splits, between_splits(prints), pictures)


@dataclass(frozen=True)
class _Seen:
    size: tuple[int, int]
    print: Print
    small: Image.Image


def _opened(
    images: LabelledImages | StreamedImages, threads: int, step: Callable[[str, int | None], None], split: str
) -> Iterator[tuple[str, int, _Seen | str]]:
    """(id, label, facts or the reason why it cannot be read) of each image, in order, a few at a time in memory."""
    if images.indexed is False:
        step(split, None)
        for image_id, label, image in images:
            step(split, 1)
            yield image_id, label, "it cannot be decoded" if image is None else _see(split, image_id, image)
        return
    step(split, len(images))

    def look(index: int) -> _Seen | str:
        try:
            return _see(split, images.ids[index], images.open(index))
        except (ImageError, OSError) as error:
            return str(error)

    indices = iter(range(len(images)))
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(indices, 16 * threads)):
            for index, found in zip(chunk, pool.map(look, chunk), strict=True):
                step(split, 1)
                yield images.ids[index], images.labels[index], found


def _see(split: str, image_id: str, image: Image.Image) -> _Seen:
    small = image.copy()
    small.thumbnail((CELL, CELL), Image.Resampling.BICUBIC)
    return _Seen(image.size, fingerprint(split, image_id, image), small)
