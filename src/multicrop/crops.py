"""Crop samplers: (height, width, image id, seed) -> boxes. Four numbers a crop; pixels come later (views.py).

Every sampler yields the boxes of the crops alone; `boxes_of` puts the global view, the whole image, in slot 0. Box j depends on the
seed, the image id, j and the image's size only, so 64 crops begin with the same 16 crops.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

CropSampler = Callable[..., Float[Tensor, "crops 4"]]  # (height, width, image_id, seed), knobs already bound


def crop_generator(seed: int, image_id: str, index: int) -> torch.Generator:
    """The generator of one crop, keyed by content so that batch, order, worker and rank change nothing."""
    digest = hashlib.blake2b(f"{seed}\0{image_id}\0{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def boxes_of(sampler: CropSampler, height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "views 4"]:
    """The global view (the whole image) followed by the sampler's crops; whole-number xyxy pixels."""
    whole = torch.tensor([[0.0, 0.0, width, height]])
    return torch.cat([whole, sampler(height, width, image_id, seed)])


def global_view(height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "crops 4"]:
    """No crops: the global view is all there is (CLIP)."""
    return torch.zeros(0, 4)


def random(
    height: int, width: int, image_id: str, seed: int, *, n_crops: int, min_side: float, max_side: float
) -> Float[Tensor, "crops 4"]:
    """Square crops, side uniform in [min_side, max_side] of the shorter side, position uniform (WCA, ICML 2024).

    Raises ValueError unless 0 < min_side <= max_side <= 1 and n_crops >= 1.
    """
    if not 0 < min_side <= max_side <= 1:
        raise ValueError(f"crop sides are fractions with 0 < min_side <= max_side <= 1, got {min_side} and {max_side}")
    _check_count(n_crops)
    boxes = []
    for index in range(n_crops):
        u = torch.rand(3, generator=crop_generator(seed, image_id, index)).tolist()
        side = max(1, round(min(height, width) * (min_side + (max_side - min_side) * u[0])))
        left, top = round(u[1] * (width - side)), round(u[2] * (height - side))
        boxes.append([left, top, left + side, top + side])
    return torch.tensor(boxes, dtype=torch.float32)


def grid(height: int, width: int, image_id: str, seed: int, *, sizes: Sequence[int], overlap: float) -> Float[Tensor, "crops 4"]:
    """G x g equal tiles for each g in `sizes` (a pyramid), row by row; neighbours share `overlap` of a tile's side.

    Raises ValueError unless every g >= 1 and 0 <= overlap < 1.
    """
    if not sizes or min(sizes) < 1 or not 0 <= overlap < 1:
        raise ValueError(f"grid wants sizes >= 1 and 0 <= overlap < 1, got sizes={list(sizes)} and overlap={overlap}")
    boxes = []
    for size in sizes:
        xs, ys = _tiles(width, size, overlap), _tiles(height, size, overlap)
        boxes += [[left, top, right, bottom] for top, bottom in ys for left, right in xs]
    return torch.tensor(boxes, dtype=torch.float32)


def _tiles(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` intervals of one width that span [0, length] with the wished overlap."""
    width = length / (count - (count - 1) * overlap)
    step = width * (1 - overlap)
    starts = [round(index * step) for index in range(count)]
    size = max(1, min(length, math.ceil(width)))
    return [(min(start, length - size), min(start, length - size) + size) for start in starts]


def _check_count(n_crops: int) -> None:
    if n_crops < 1:
        raise ValueError(f"n_crops is {n_crops}; a crop policy needs one or more (for none, choose crop=global)")
