"""What every data set yields: class names, their descriptions, and labelled images per split, indexed or streamed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from multicrop.data.classes import ClassList, check_labels
from multicrop.data.contents import FileContents
from multicrop.data.images import ImageError, open_image
from multicrop.files import content_hash, retrying


@dataclass(frozen=True)
class LabelledImages:
    """Images with stable ids and labels, read in any order.

    Attributes:
        name: Name of the data set and the split.
        ids: One stable id per image; it keys the crops of the image. Of a large table it is read on demand, and then ``content`` covers it.
        labels: One class index per image.
        open: Function from a position to the decoded RGB image; raises ImageError. Several threads may call it at once.
        content: Hash of everything that can change the pixels or the ids, or the files whose bytes are hashed for it. It does not depend on
            where the files lie.
        domains: One domain per image (for instance the vendor of a drawing), or None.
        parent: The set that this is a subset of, with the positions of these images in it, or None.
        clusters: One cluster per image, whose images are not independent (frames of a video, images of a patient), ``""`` for an image in
            none; or None. Intervals and tests are over clusters.
        indexed: True: images are read by position.
    """

    indexed: ClassVar[Literal[True]] = True
    name: str
    ids: Sequence[str]
    labels: Sequence[int]
    open: Callable[[int], Image.Image]
    content: str | FileContents
    domains: list[str] | None = None
    parent: tuple["LabelledImages", list[int]] | None = None
    clusters: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """The hash of the content. Images in files are read for it the first time, so ask only for images that are used."""
        return self.content if isinstance(self.content, str) else self.content.fingerprint

    def subset(self, indices: Sequence[int]) -> "LabelledImages":
        """Select images.

        Args:
            indices: Positions, in the order of the result.

        Returns:
            The images at these positions, with this set as their parent.
        """
        ids = [self.ids[i] for i in indices]
        return replace(
            self,
            ids=ids,
            labels=[self.labels[i] for i in indices],
            open=_Reindexed(self.open, list(indices)),
            content=content_hash(self.content, *ids) if isinstance(self.content, str) else self.content.subset(indices, ids),
            domains=[self.domains[i] for i in indices] if self.domains else None,
            parent=(self, list(indices)),
            clusters=[self.clusters[i] for i in indices] if self.clusters else None,
        )


@dataclass(frozen=True)
class _Reindexed:
    open: Callable[[int], Image.Image]
    indices: list[int]

    def __call__(self, index: int) -> Image.Image:
        return self.open(self.indices[index])


@dataclass(frozen=True)
class StreamedImages(IterableDataset):
    """Images that are read once, in order, without an index.

    Iterating gives (id, label, RGB image), the image being None if it cannot be read. A process that is one of several reads one of
    `world_size` x workers parts of the stream, so that every image is read once.

    Attributes:
        name: Name of the data set and the split.
        class_names: The names of the classes, in the order of the labels.
        source: Function (part, parts) that yields (id, label, function that opens the image) for its part of the stream.
        fingerprint: Hash of what the stream is made of.
        rank: Number of this process among `world_size` processes.
        world_size: Number of processes that share the stream.
        indexed: False: images cannot be read by position.
    """

    indexed: ClassVar[Literal[False]] = False
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
                yield image_id, label, retrying(opened, image_id)
            except ImageError:
                yield image_id, label, None


@dataclass(frozen=True)
class Dataset:
    """A classification problem.

    Attributes:
        name: Name of the data set.
        class_names: The names of the classes, in the order of the labels.
        descriptions: Descriptions of the data set's own, by class name; may be empty. A
            ``GlobalText`` is about the whole.
        train: The pool that few-shot splits draw from; may be empty.
        validation: Validation images; may be empty.
        test: Test images, indexed or streamed.
        class_keys: Stable keys of the classes, such as ImageNet's wnids, or None.
    """

    name: str
    class_names: list[str]
    descriptions: dict[str, list[str]]
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages | StreamedImages
    class_keys: list[str] | None = None


def open_bytes(data: bytes, name: str) -> Image.Image:
    """Decode an image in memory as `open_image` does; an ImageError begins with `name`."""
    try:
        return open_image(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


@dataclass(frozen=True)
class Files:
    """Opens file i as `open_image` does."""

    paths: list[Path]

    def __call__(self, index: int) -> Image.Image:
        """The image in file `index`; raises ImageError."""
        return open_image(self.paths[index])


def file_images(
    name: str, ids: Sequence[str], labels: Sequence[int], paths: Sequence[Path], clusters: Sequence[str] | None = None
) -> LabelledImages:
    """Labelled images in files.

    Args:
        name: Name of the data set and the split.
        ids: One id per image.
        labels: One class index per image.
        paths: One file per image.
        clusters: One cluster per image, or None.

    Returns:
        The images; their fingerprint covers the id and the bytes of each file.

    Raises:
        ValueError: If files are missing.
    """
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(ids)} images of {name} do not exist: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. Check dataset.root, or unpack all of the data"
        )
    named = list(clusters) if clusters and any(clusters) else None
    return LabelledImages(name, list(ids), list(labels), Files(list(paths)), FileContents(name, list(ids), list(paths)), clusters=named)


def assemble(name: str, classes: ClassList, splits: Mapping[str, LabelledImages]) -> Dataset:
    """Build a data set from its splits and check it.

    Args:
        name: Name of the data set.
        classes: Class names and keys, in the order of the labels.
        splits: The images of `test` and, where there are any, `train` and `validation`.

    Returns:
        The data set, without descriptions.

    Raises:
        ValueError: If ids repeat, a label has no class name, or a class has no test image.
    """
    empty = splits["test"].subset([])
    for images in splits.values():
        if twice := [image_id for image_id, count in Counter(images.ids).items() if count > 1]:
            raise ValueError(f"{len(twice)} ids of {images.name} repeat: {', '.join(twice[:3])}; give each image a unique id")
        check_labels(images.labels, classes.names, images.name)
    tested = set(splits["test"].labels)
    if absent := [title for label, title in enumerate(classes.names) if label not in tested]:
        raise ValueError(
            f"{len(absent)} of {len(classes.names)} classes have no test image in {splits['test'].name}: {', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}. Add images, or leave the classes out of the data"
        )
    train, validation = splits.get("train", empty), splits.get("validation", empty)
    return Dataset(name, classes.names, {}, train, validation, splits["test"], classes.keys)
