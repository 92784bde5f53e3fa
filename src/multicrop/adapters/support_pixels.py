"""Support images as pixels, for adapters that learn through the image tower: batches, opened images, random views."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from multicrop.crops import boxes_of, random_resized
from multicrop.crops.pixels import PixelSpec, crop_pixels
from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError, shared_pixels

CACHE_BYTES = 2**30  # of opened support images, so that a small set is decoded once


class Iterations:
    """One batch per epoch, taken from consecutive shuffles of the example indices.

    Args:
        n: Number of examples.
        batch_size: Examples per batch.
        seed: Seed of the shuffles, and of `key`.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0

    @property
    def key(self) -> int:
        """A seed for the other random draws of this iteration."""
        return 1_000_003 * self.seed + self.epoch

    def __iter__(self) -> Iterator[Tensor]:
        places = range(self.epoch * self.batch_size, (self.epoch + 1) * self.batch_size)
        shuffles = {turn: self._shuffle(turn) for turn in range(places[0] // self.n, places[-1] // self.n + 1)}
        yield torch.stack([shuffles[place // self.n][place % self.n] for place in places])

    def __len__(self) -> int:
        return 1

    def _shuffle(self, turn: int) -> Tensor:
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(1_000_003 * self.seed + turn))


class Passes(Iterations):
    """One batch per epoch, taken from consecutive passes over the examples, each of which ends with a smaller batch."""

    def __iter__(self) -> Iterator[Tensor]:
        turn, place = divmod(self.epoch, -(-self.n // self.batch_size))
        yield self._shuffle(turn)[place * self.batch_size : (place + 1) * self.batch_size]


class OpenedImages:
    """Opens images, and keeps the first ones that fit into `CACHE_BYTES`.

    Every image is opened equally often, so it does not matter which ones are kept.
    """

    def __init__(self, opener: Callable[[int], Image.Image]) -> None:
        self.opener, self.room = opener, CACHE_BYTES
        self.images: dict[int, Image.Image] = {}

    def __call__(self, index: int) -> Image.Image:
        """Return the image at this index."""
        if index in self.images:
            return self.images[index]
        image = self.opener(index)
        if (size := 4 * image.width * image.height) <= self.room:  # PIL stores four bytes per pixel
            self.images[index] = image
            self.room -= size
        return image


@dataclass(frozen=True)
class SupportPixels:
    """The readable support images.

    Attributes:
        images: The support images, of which as many as fit stay in memory.
        readable: Positions of the readable ones.
        shots: Images of the largest class.
    """

    images: LabelledImages
    readable: list[int]
    shots: int

    @classmethod
    def of(cls, support: LabelledImages) -> "SupportPixels":
        """Open the support images; raises ValueError if none is readable."""
        images = replace(support, open=OpenedImages(support.open))
        readable = [index for index in range(len(images)) if opened(images, index) is not None]
        if not readable:
            raise ValueError(f"no support image of {images.name} is readable; replace the files or choose another data set")
        return cls(images, readable, max(images.labels.count(label) for label in set(images.labels)))

    def views(
        self, batch: Int[Tensor, " batch"], spec: PixelSpec, key: int
    ) -> tuple[UInt8[Tensor, "batch 3 side side"], Int[Tensor, " batch"]]:
        """Return a random view of each image of a batch, keyed by `key`, and their labels.

        Args:
            batch: Positions among the readable images.
            spec: What the image tower expects of pixels.
            key: Seed of the crops.
        """
        chosen = [self.readable[index] for index in batch.tolist()]
        views = [random_view(self.images, index, spec, key) for index in chosen]
        return torch.stack(views), torch.tensor([self.images.labels[index] for index in chosen])


def random_view(images: LabelledImages, index: int, spec: PixelSpec, seed: int) -> UInt8[Tensor, "3 side side"]:
    """Cut one random resized, perhaps mirrored crop of an image, keyed by the seed and the id of the image.

    Args:
        images: The images.
        index: Position of the image.
        spec: What the image tower expects of pixels.
        seed: Seed of the crop.

    Returns:
        Pixels, shape (3, side, side).
    """
    pixels = shared_pixels(images.open(index))
    sampler = partial(random_resized, n_crops=1, min_area=0.08, max_area=1.0, flip_probability=0.5)
    height, width = pixels.shape[1:]
    left, top, right, bottom = boxes_of(sampler, height, width, images.ids[index], seed)[1].int().tolist()
    return crop_pixels(pixels, left, top, right, bottom, spec=spec)


def opened(images: LabelledImages, index: int) -> Image.Image | None:
    """Return the image, or None if it is unreadable."""
    try:
        return images.open(index)
    except ImageError:
        return None
