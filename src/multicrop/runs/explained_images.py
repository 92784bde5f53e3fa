"""The images that `task=explain` is asked for: files, files of folders, and images of the data set, which keep their ids."""

import filecmp
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image

from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.contents import FileContents
from multicrop.data.images import ImageError, open_image
from multicrop.data.sources.folder import SUFFIXES, image_files

USAGE = "pass image=PATH, a file or a folder, image=ID, an image of the data set, or several as image=[a.jpg,b.png]"
SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Asked:
    """An image to explain: its id if it is one of the data set's, else its file name; whether it was named, not found in a folder."""

    name: str
    open: Callable[[], Image.Image]
    named: bool
    label: int | None = None  # class index of an image of the data set


class DataImages:
    """The images of a data set by id and by file, those of the scored split first.

    Args:
        dataset: The data set.
        split: The scored split.
    """

    def __init__(self, dataset: Dataset, split: str) -> None:
        names = (split, *(name for name in SPLITS if name != split))
        self.splits: list[LabelledImages] = [images for name in names if (images := getattr(dataset, name)).indexed is True]

    def by_id(self, image_id: str) -> Asked | None:
        """The image with this id."""
        return next((self._asked(images, places[image_id]) for images, places in self._places if image_id in places), None)

    def by_file(self, path: Path) -> Asked | None:
        """The image with the bytes of a file or, in data that is not one file per image, with the id that names it and its pixels."""
        for images, places in self._places:
            content = images.content
            if isinstance(content, FileContents) and content.per_image:
                same = (index for index, own in self._by_size(images).get(path.stat().st_size, []) if _same_bytes(own, path))
            else:
                same = (index for image_id, index in places.items() if _file_name(image_id) == path.stem and _same(images, index, path))
            if (index := next(same, None)) is not None:
                return self._asked(images, index)
        return None

    @cached_property
    def _places(self) -> list[tuple[LabelledImages, dict[str, int]]]:
        return [(images, {image_id: index for index, image_id in enumerate(images.ids)}) for images in self.splits]

    @cached_property
    def _sizes(self) -> dict[int, dict[int, list[tuple[int, Path]]]]:
        return {}

    def _by_size(self, images: LabelledImages) -> dict[int, list[tuple[int, Path]]]:
        """The images whose local files have a size, so that few files are read."""
        found = self._sizes.setdefault(id(images), {})
        if not found and isinstance(images.content, FileContents):
            for index, path in enumerate(images.content.paths):
                if isinstance(path, Path):
                    found.setdefault(path.stat().st_size if path.is_file() else -1, []).append((index, path))
        return found

    def _asked(self, images: LabelledImages, index: int) -> Asked:
        return Asked(images.ids[index], partial(images.open, index), True, images.labels[index])


def asked_images(image: str | Sequence[str] | None, data: Callable[[], DataImages]) -> list[Asked]:
    """The images that `image` names, those of folders sorted.

    Args:
        image: A file, a folder, the id of an image of the data set, or several of them.
        data: Reads the images of the data set; called once there is an image.

    Raises:
        ValueError: If there is none, a path does not exist and is no id, or a folder holds no image.
    """
    given = [image] if isinstance(image, str | int | float) else list(image or [])
    if not given:
        raise ValueError(f"task=explain has no image to explain; {USAGE}")
    found: list[Asked] = []
    for entry in map(str, given):
        path = Path(entry).expanduser()
        if path.is_dir():
            found += [_in_file(file, data(), named=False) for file in _files_in(path)]
        elif path.is_file():
            found.append(_in_file(path, data(), named=True))
        elif (known := data().by_id(entry)) is not None:
            found.append(known)
        else:
            raise ValueError(f"the image {entry} does not exist, and the data set has no image with this id; {USAGE}")
    return found


def _files_in(folder: Path) -> list[Path]:
    found = image_files(folder)
    if not found:
        raise ValueError(f"the folder {folder} holds no image ({', '.join(sorted(SUFFIXES))}); {USAGE}")
    return found


def _in_file(path: Path, data: DataImages, *, named: bool) -> Asked:
    known = data.by_file(path)
    return Asked(path.name, partial(open_image, path), named) if known is None else Asked(known.name, known.open, named, known.label)


def _file_name(image_id: str) -> str:
    return image_id.replace("/", "-")


def _same_bytes(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def _same(images: LabelledImages, index: int, path: Path) -> bool:
    """Whether a file has the pixels of an image."""
    try:
        return np.array_equal(np.asarray(images.open(index)), np.asarray(open_image(path)))
    except ImageError:
        return False
