"""What every crop sampler shares: its signature, its key, and the global view in slot 0."""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

CropSampler = Callable[..., Float[Tensor, "crops 4"]]  # (height, width, image_id, seed), knobs already bound


def crop_key(seed: int, image_id: str, index: int | str) -> int:
    """A whole number in [0, 2^63) that stands for one crop, or (`index` a word) for one sequence of an image."""
    digest = hashlib.blake2b(f"{seed}\0{image_id}\0{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def crop_generator(seed: int, image_id: str, index: int) -> torch.Generator:
    """The generator of one crop, keyed by content so that batch, order, worker and rank change nothing."""
    return torch.Generator().manual_seed(crop_key(seed, image_id, index))


def boxes_of(sampler: CropSampler, height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "views 4"]:
    """The global view (the whole image) followed by the sampler's crops; whole-number pixels, x1 > x2 where a crop is mirrored."""
    whole = torch.tensor([[0.0, 0.0, width, height]])
    return torch.cat([whole, sampler(height, width, image_id, seed)])
