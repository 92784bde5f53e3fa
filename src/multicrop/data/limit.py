"""A part of a split, for a run that tries the whole way on few images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from PIL import Image

from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.files import content_hash

Images = TypeVar("Images", bound=LabelledImages | StreamedImages)


def limited(images: Images, limit: int | None) -> Images:
    """At most some images of a split.

    Args:
        images: The split.
        limit: Number of images; None for all.

    Returns:
        Images at equal distances, so that a split sorted by class gives many classes; of a stream its first ones. The split itself where
        it has no more than ``limit``.
    """
    if limit is None:
        return images
    if images.indexed is False:
        return replace(images, source=_First(images.source, limit), fingerprint=content_hash(images.fingerprint, limit))
    return images if len(images) <= limit else images.subset([place * len(images) // limit for place in range(limit)])


@dataclass(frozen=True)
class _First:
    """The first images of each part of a stream, `limit` over all parts."""

    source: Callable[[int, int], Iterator[tuple[str, int, Callable[[], Image.Image]]]]
    limit: int

    def __call__(self, part: int, parts: int) -> Iterator[tuple[str, int, Callable[[], Image.Image]]]:
        return islice(self.source(part, parts), self.limit // parts + (part < self.limit % parts))
