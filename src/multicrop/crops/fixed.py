"""Crops that depend on the size of the image only: none, tiles, corners and centre."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.config.ranges import BelowOne, Share, Tiles


def global_view(height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "crops 4"]:
    """Make no crops: the global view is the only view (CLIP).

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.

    Returns:
        No boxes, shape (0, 4).
    """
    return torch.zeros(0, 4)


def grid(height: int, width: int, image_id: str, seed: int, *, sizes: Sequence[Tiles], overlap: BelowOne) -> Float[Tensor, "crops 4"]:
    """Cut the image into g x g equal tiles for each g in `sizes` (a pyramid), row by row.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        sizes: Tiles per side, each 1 or more.
        overlap: Share of a tile's side that neighbours have in common, 0 or more and below 1.

    Returns:
        Boxes (left, top, right, bottom) in whole pixels, shape (crops, 4).

    Raises:
        ValueError: Unless every g >= 1 and 0 <= overlap < 1.
    """
    if not sizes or min(sizes) < 1 or not 0 <= overlap < 1:
        raise ValueError(f"grid expects sizes >= 1 and 0 <= overlap < 1, got sizes={list(sizes)} and overlap={overlap}")
    boxes = []
    for size in sizes:
        xs, ys = _tiles(width, size, overlap), _tiles(height, size, overlap)
        boxes += [[left, top, right, bottom] for top, bottom in ys for left, right in xs]
    return torch.tensor(boxes, dtype=torch.float32)


def five_crop(height: int, width: int, image_id: str, seed: int, *, side: Share) -> Float[Tensor, "crops 4"]:
    """Cut squares at the four corners and the centre (torchvision's five_crop).

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        side: Side of the squares, as a share of the image's shorter side, above 0 and at most 1.

    Returns:
        Boxes (left, top, right, bottom) in whole pixels, shape (5, 4): top left, top right, bottom left, bottom right, centre.

    Raises:
        ValueError: Unless 0 < side <= 1.
    """
    if not 0 < side <= 1:
        raise ValueError(f"side is a share of the shorter side with 0 < side <= 1, got {side}")
    size = max(1, round(min(height, width) * side))
    right, bottom = width - size, height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    return torch.tensor([[x, y, x + size, y + size] for x, y in corners], dtype=torch.float32)


def ten_crop(height: int, width: int, image_id: str, seed: int, *, side: Share) -> Float[Tensor, "crops 4"]:
    """Cut the five crops of the image, then the five of its mirror image (AlexNet; torchvision's ten_crop).

    The mirror image maps x to width - x, so that its crops are mirrored crops of the image.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        side: Side of the squares, as a share of the image's shorter side, above 0 and at most 1.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (10, 4); x1 > x2 for the mirrored five.

    Raises:
        ValueError: Unless 0 < side <= 1.
    """
    five = five_crop(height, width, image_id, seed, side=side)
    mirrored = five.clone()
    mirrored[:, [0, 2]] = width - five[:, [0, 2]]
    return torch.cat([five, mirrored])


def _tiles(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """`count` intervals of equal width that span [0, length], neighbours with this overlap."""
    width = length / (count - (count - 1) * overlap)
    step = width * (1 - overlap)
    starts = [round(index * step) for index in range(count)]
    size = max(1, min(length, math.ceil(width)))
    return [(min(start, length - size), min(start, length - size) + size) for start in starts]
