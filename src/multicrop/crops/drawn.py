"""Crops drawn per image: random and quasi-random squares, resized crops with flips, squares with bounded overlap."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.config.ranges import CropCount, Fraction, Share
from multicrop.crops.base import crop_generator, crop_key
from multicrop.crops.policy import crop_policy

DIVERSE_ATTEMPTS = 20  # candidates per crop
RESIZED_ATTEMPTS = 10  # torchvision's, before it falls back to the centre
WIDEST = 4 / 3  # width over height, or height over width, of a resized crop


@crop_policy(nested=True)
def random(
    height: int, width: int, image_id: str, seed: int, *, n_crops: CropCount, min_side: Share, max_side: Share
) -> Float[Tensor, "crops 4"]:
    """Draw square crops, side uniform in [min_side, max_side] of the shorter side, position uniform (WCA, ICML 2024).

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        n_crops: Crops per image, 1 or more.
        min_side: Shortest side, as a share of the image's shorter side, above 0.
        max_side: Longest side, as a share of the image's shorter side, at most 1.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (n_crops, 4).

    Raises:
        ValueError: Unless 0 < min_side <= max_side <= 1 and n_crops >= 1.
    """
    check_sides(n_crops, min_side, max_side)
    draws = [torch.rand(3, generator=crop_generator(seed, image_id, index)).tolist() for index in range(n_crops)]
    return torch.tensor([_square(height, width, u, min_side, max_side) for u in draws], dtype=torch.float32)


@crop_policy(nested=True)
def quasi_random(
    height: int, width: int, image_id: str, seed: int, *, n_crops: CropCount, min_side: Share, max_side: Share
) -> Float[Tensor, "crops 4"]:
    """Draw square crops whose side and position are points of a 3-D Sobol sequence, scrambled per (seed, image id) (ours).

    Each box is distributed as in `random`; together they cover sides and positions more evenly.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        n_crops: Crops per image, 1 or more.
        min_side: Shortest side, as a share of the image's shorter side, above 0.
        max_side: Longest side, as a share of the image's shorter side, at most 1.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (n_crops, 4).

    Raises:
        ValueError: Unless 0 < min_side <= max_side <= 1 and n_crops >= 1.
    """
    check_sides(n_crops, min_side, max_side)
    from scipy.stats import qmc  # half a second of imports, which only this policy needs

    sequence = qmc.Sobol(3, rng=np.random.default_rng(crop_key(seed, image_id, "sobol")))
    points = sequence.random_base2((n_crops - 1).bit_length())[:n_crops].tolist()
    return torch.tensor([_square(height, width, u, min_side, max_side) for u in points], dtype=torch.float32)


@crop_policy(nested=True)
def diverse(
    height: int, width: int, image_id: str, seed: int, *, n_crops: CropCount, min_side: Share, max_side: Share, max_iou: Share
) -> Float[Tensor, "crops 4"]:
    """Draw square crops as `random` does, and draw a crop again whose IoU with an earlier one exceeds `max_iou` (after BiFTA's code).

    There are always n_crops: crop j keeps its last candidate when all of its DIVERSE_ATTEMPTS overlap. BiFTA filters a fixed number of
    proposals instead, and repeats accepted crops where too few remain.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        n_crops: Crops per image, 1 or more.
        min_side: Shortest side, as a share of the image's shorter side, above 0.
        max_side: Longest side, as a share of the image's shorter side, at most 1.
        max_iou: Largest intersection over union with an earlier crop, above 0 and at most 1.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (n_crops, 4).

    Raises:
        ValueError: Unless 0 < min_side <= max_side <= 1, n_crops >= 1 and 0 < max_iou <= 1.
    """
    check_sides(n_crops, min_side, max_side)
    if not 0 < max_iou <= 1:
        raise ValueError(f"max_iou is an intersection over union with 0 < max_iou <= 1, got {max_iou}")
    boxes: list[list[int]] = []
    for index in range(n_crops):
        generator, box = crop_generator(seed, image_id, index), []
        for _ in range(DIVERSE_ATTEMPTS):
            box = _square(height, width, torch.rand(3, generator=generator).tolist(), min_side, max_side)
            if all(_iou(box, earlier) <= max_iou for earlier in boxes):
                break
        boxes.append(box)
    return torch.tensor(boxes, dtype=torch.float32)


@crop_policy(nested=True)
def random_resized(
    height: int, width: int, image_id: str, seed: int, *, n_crops: CropCount, min_area: Share, max_area: Share, flip_probability: Fraction
) -> Float[Tensor, "crops 4"]:
    """Draw crops of uniform area and log-uniform aspect ratio (3/4 to 4/3), mirrored at random.

    torchvision's RandomResizedCrop and RandomHorizontalFlip, as TPT, AWT and ZERO use them.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        n_crops: Crops per image, 1 or more.
        min_area: Smallest area, as a share of the image's, above 0.
        max_area: Largest area, as a share of the image's, at most 1.
        flip_probability: Probability that a crop is mirrored, in 0-1.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (n_crops, 4); x1 > x2 where a crop is mirrored.

    Raises:
        ValueError: Unless 0 < min_area <= max_area <= 1, 0 <= flip_probability <= 1 and n_crops >= 1.
    """
    _check_count(n_crops)
    if not 0 < min_area <= max_area <= 1 or not 0 <= flip_probability <= 1:
        got = f"min_area={min_area}, max_area={max_area}, flip_probability={flip_probability}"
        raise ValueError(f"random_resized expects 0 < min_area <= max_area <= 1 and 0 <= flip_probability <= 1, got {got}")
    boxes = []
    for index in range(n_crops):
        generator = crop_generator(seed, image_id, index)
        draws = torch.rand(RESIZED_ATTEMPTS, 4, generator=generator).tolist()
        left, top, right, bottom = _resized(height, width, draws, min_area, max_area)
        flip = torch.rand(1, generator=generator).item() < flip_probability
        boxes.append([right, top, left, bottom] if flip else [left, top, right, bottom])
    return torch.tensor(boxes, dtype=torch.float32)


def _square(height: int, width: int, u: Sequence[float], min_side: float, max_side: float) -> list[int]:
    """The square of three numbers in [0, 1): side, left, top."""
    side = max(1, round(min(height, width) * (min_side + (max_side - min_side) * u[0])))
    left, top = round(u[1] * (width - side)), round(u[2] * (height - side))
    return [left, top, left + side, top + side]


def _resized(height: int, width: int, draws: list[list[float]], min_area: float, max_area: float) -> list[int]:
    """The first draw (area, aspect, left, top in [0, 1)) that fits the image; else the largest centred crop of allowed aspect."""
    for area, aspect, x, y in draws:
        pixels, ratio = height * width * (min_area + (max_area - min_area) * area), WIDEST ** (2 * aspect - 1)
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return [left, top, left + w, top + h]
    w, h = min(width, round(height * WIDEST)), min(height, round(width * WIDEST))
    left, top = (width - w) // 2, (height - h) // 2
    return [left, top, left + w, top + h]


def _iou(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over union of two boxes that are not mirrored."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def check_sides(n_crops: int, min_side: float, max_side: float) -> None:
    """Raise ValueError unless 0 < min_side <= max_side <= 1 and n_crops >= 1."""
    if not 0 < min_side <= max_side <= 1:
        raise ValueError(f"crop sides are fractions with 0 < min_side <= max_side <= 1, got {min_side} and {max_side}")
    _check_count(n_crops)


def _check_count(n_crops: int) -> None:
    if n_crops < 1:
        raise ValueError(f"n_crops is {n_crops}; a crop policy needs 1 or more (for no crops, choose crop=global)")
