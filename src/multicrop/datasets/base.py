"""What every data set yields: class names, their descriptions, and labelled images a split; and few-shot splits."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

VALIDATION_SHOTS = 4  # at most this many validation images a class in a few-shot split


@dataclass(frozen=True)
class LabelledImages:
    """Images with stable ids and labels; `open(i)` decodes image i as RGB or raises ImageError.

    `fingerprint` is a hash of everything that can change the pixels or the ids; paths are no part of it.
    """

    name: str
    ids: list[str]
    labels: list[int]
    open: Callable[[int], Image.Image]
    fingerprint: str
    domains: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, indices: Sequence[int]) -> "LabelledImages":
        """The images at these positions, in this order."""
        ids = [self.ids[i] for i in indices]
        return replace(
            self,
            ids=ids,
            labels=[self.labels[i] for i in indices],
            open=_Reindexed(self.open, list(indices)),
            fingerprint=content_hash(self.fingerprint, *ids),
            domains=[self.domains[i] for i in indices] if self.domains else None,
        )


@dataclass(frozen=True)
class _Reindexed:
    open: Callable[[int], Image.Image]
    indices: list[int]

    def __call__(self, index: int) -> Image.Image:
        return self.open(self.indices[index])


@dataclass(frozen=True)
class Dataset:
    """A classification problem: `train` is the pool that few-shot splits draw from; `validation` may be empty."""

    name: str
    class_names: list[str]
    descriptions: dict[str, list[str]]
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def content_hash(*parts: object) -> str:
    """A short hash of the text of the parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()


def few_shot_split(dataset: Dataset, *, shots: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """(support, validation), balanced, nested in `shots`, from the training pool (and the validation images, where there are any).

    The support of a class is the head of one permutation keyed by (seed, class); its validation images are the tail, at most
    min(shots, 4). A class with too few images gives fewer of both and keeps one for validation. Raises ValueError when a class has
    fewer than two images and the data set brings no validation images.
    """
    if shots < 1:
        raise ValueError(f"task.shots is {shots}; few-shot needs one image a class or more")
    labels, support, validation = np.asarray(dataset.train.labels), [], []
    own_validation = len(dataset.validation) > 0
    for label, name in enumerate(dataset.class_names):
        members = np.flatnonzero(labels == label)
        if len(members) < (1 if own_validation else 2):
            raise ValueError(
                f"few-shot needs {'one image' if own_validation else 'two images'} a class to train and validate; "
                f"class {name!r} has {len(members)} in {dataset.train.name}. Add images or leave the class out"
            )
        key = int(content_hash(seed, name)[:15], 16)
        order = np.random.default_rng(key).permutation(members)
        held_back = 0 if own_validation else min(shots, VALIDATION_SHOTS, max(1, len(order) - shots))
        support += order[: min(shots, len(order) - held_back)].tolist()
        validation += order[len(order) - held_back :].tolist() if held_back else []
    if own_validation:
        return dataset.train.subset(support), first_per_class(dataset.validation, min(shots, VALIDATION_SHOTS))
    return dataset.train.subset(support), dataset.train.subset(validation)


def first_per_class(images: LabelledImages, count: int) -> LabelledImages:
    """The first `count` images of every class, in order."""
    seen: dict[int, int] = {}
    kept = []
    for index, label in enumerate(images.labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            kept.append(index)
    return images.subset(kept)
