"""Crops that are the same for every image of a size: none, tiles, corners and centre."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def global_view(height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "crops 4"]:
    """No crops: the global view is all there is (CLIP)."""
    return torch.zeros(0, 4)


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


def five_crop(height: int, width: int, image_id: str, seed: int, *, side: float) -> Float[Tensor, "crops 4"]:
    """Square crops at the four corners and the centre, `side` a share of the shorter side (torchvision's five_crop and its order).

    Top left, top right, bottom left, bottom right, centre. Raises ValueError unless 0 < side <= 1.
    """
    if not 0 < side <= 1:
        raise ValueError(f"side is a share of the shorter side with 0 < side <= 1, got {side}")
    size = max(1, round(min(height, width) * side))
    right, bottom = width - size, height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    return torch.tensor([[x, y, x + size, y + size] for x, y in corners], dtype=torch.float32)


def ten_crop(height: int, width: int, image_id: str, seed: int, *, side: float) -> Float[Tensor, "crops 4"]:
    """The five crops of the image, then the five of its mirror image (AlexNet; torchvision's ten_crop and its order).

    The mirror image maps x to width - x, which turns its crops into mirrored ones of the image. Raises ValueError as `five_crop` does.
    """
    five = five_crop(height, width, image_id, seed, side=side)
    mirrored = five.clone()
    mirrored[:, [0, 2]] = width - five[:, [0, 2]]
    return torch.cat([five, mirrored])


def _tiles(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` intervals of one width that span [0, length] with the wished overlap."""
    width = length / (count - (count - 1) * overlap)
    step = width * (1 - overlap)
    starts = [round(index * step) for index in range(count)]
    size = max(1, min(length, math.ceil(width)))
    return [(min(start, length - size), min(start, length - size) + size) for start in starts]
