"""What all crop policies share: the key and generator of each crop, and the global view in slot 0."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.crops.policy import CropSampler


def crop_key(seed: int, image_id: str, index: int | str) -> int:
    """A whole number in [0, 2^63) that identifies one crop or, where `index` is a word, one sequence of an image."""
    digest = hashlib.blake2b(f"{seed}\0{image_id}\0{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def crop_generator(seed: int, image_id: str, index: int) -> torch.Generator:
    """The random generator of one crop; keyed by content, so that batches, order, workers and ranks change nothing.

    Args:
        seed: Seed of the crops.
        image_id: Identifier of the image within its data set.
        index: Number of the crop, from 0.
    """
    return torch.Generator().manual_seed(crop_key(seed, image_id, index))


def boxes_of(sampler: CropSampler, height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "views 4"]:
    """The global view (the whole image) followed by the policy's crops.

    Args:
        sampler: A crop policy with its knobs bound.
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (views, 4); x1 > x2 where a crop is mirrored.
    """
    whole = torch.tensor([[0.0, 0.0, width, height]])
    return torch.cat([whole, sampler(height, width, image_id, seed)])
