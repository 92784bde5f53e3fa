"""What every data set yields: class names, their descriptions, and labelled images a split, indexed or streamed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from multicrop.data.classes import ClassList, check_labels
from multicrop.data.images import ImageError, open_image
from multicrop.files import content_hash

Item = TypeVar("Item")


@dataclass(frozen=True)
class LabelledImages:
    """Images with stable ids and labels; `open(i)` decodes image i as RGB or raises ImageError; several threads call it at once.

    `fingerprint` is a hash of everything that can change the pixels or the ids; paths are no part of it.
    """

    name: str
    ids: list[str]
    labels: list[int]
    open: Callable[[int], Image.Image]
    fingerprint: str
    domains: list[str] | None = None
    parent: tuple["LabelledImages", list[int]] | None = None  # the set that this is a subset of, and which rows of it

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
            parent=(self, list(indices)),
        )


@dataclass(frozen=True)
class _Reindexed:
    open: Callable[[int], Image.Image]
    indices: list[int]

    def __call__(self, index: int) -> Image.Image:
        return self.open(self.indices[index])


@dataclass(frozen=True)
class StreamedImages(IterableDataset):
    """Images that are only ever read in passing: iterating gives (id, label, RGB image), or None for an image that cannot be read.

    `source(part, parts)` yields (id, label, open) of its own part of the stream. A process that is one of several reads one part of
    `world_size` x workers, so that every image is seen once. `fingerprint` is a hash of what the stream is made of.
    """

    name: str
    class_names: list[str]
    source: Callable[[int, int], Iterator[tuple[str, int, Callable[[], Image.Image]]]]
    fingerprint: str
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[tuple[str, int, Image.Image | None]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        for image_id, label, opened in self.source(self.rank * workers + number, self.world_size * workers):
            try:
                yield image_id, label, opened()
            except ImageError:
                yield image_id, label, None


@dataclass(frozen=True)
class Dataset:
    """A classification problem: `train` is the pool that few-shot splits draw from; `validation` may be empty."""

    name: str
    class_names: list[str]
    descriptions: dict[str, list[str]]
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages | StreamedImages
    class_keys: list[str] | None = None  # stable keys, such as ImageNet's wnids


def open_bytes(data: bytes, name: str) -> Image.Image:
    """An encoded image in memory as RGB, by the rules of images.py; an ImageError says `name`."""
    try:
        return open_image(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


@dataclass(frozen=True)
class Files:
    """Opens file i by the rules of images.py."""

    paths: list[Path]

    def __call__(self, index: int) -> Image.Image:
        """The image in file `index`; raises ImageError."""
        return open_image(self.paths[index])


def file_images(name: str, ids: Sequence[str], labels: Sequence[int], paths: Sequence[Path]) -> LabelledImages:
    """Images in files; the fingerprint holds each one's id, size and time of change. Raises ValueError when files are missing."""
    facts, missing = [], []
    for image_id, path in zip(ids, paths, strict=True):
        try:
            found = path.stat()
        except OSError:
            missing.append(str(path))
        else:
            facts.append(f"{image_id}:{found.st_size}:{found.st_mtime_ns}")
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(ids)} images of {name} are not there: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. Check dataset.root, or unpack all of the data"
        )
    return LabelledImages(name, list(ids), list(labels), Files(list(paths)), content_hash(*facts))


def divided(items: Mapping[str, Sequence[Item]], test_share: float, seed: int) -> tuple[dict[str, list[Item]], dict[str, list[Item]]]:
    """(train, test) parts of each class by a permutation keyed by (seed, class); both get an item where there are two."""
    train, test = {}, {}
    for name, members in items.items():
        order = np.random.default_rng(int(content_hash(seed, name)[:15], 16)).permutation(len(members))
        count = min(max(1, round(len(members) * test_share)), max(1, len(members) - 1))
        test[name] = [members[i] for i in sorted(order[:count])]
        train[name] = [members[i] for i in sorted(order[count:])]
    return train, test


def assemble(name: str, classes: ClassList, splits: Mapping[str, LabelledImages]) -> Dataset:
    """The data set of these splits (train, validation, test; the first two may be absent), checked.

    Raises ValueError for ids that repeat, labels without a class name, and classes without a test image.
    """
    empty = splits["test"].subset([])
    for images in splits.values():
        if twice := [image_id for image_id, count in Counter(images.ids).items() if count > 1]:
            raise ValueError(f"{len(twice)} ids of {images.name} repeat: {', '.join(twice[:3])}; give each image an id of its own")
        check_labels(images.labels, classes.names, images.name)
    tested = set(splits["test"].labels)
    if absent := [title for label, title in enumerate(classes.names) if label not in tested]:
        raise ValueError(
            f"{len(absent)} of {len(classes.names)} classes have no test image in {splits['test'].name}: {', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}. Add images, or leave the classes out of the data"
        )
    train, validation = splits.get("train", empty), splits.get("validation", empty)
    return Dataset(name, classes.names, {}, train, validation, splits["test"], classes.keys)
