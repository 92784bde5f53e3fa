"""Crops of the model's token grid instead of its pixels (ABS, ICML 2025): boxes of `random` in what the global view shows."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.config.ranges import CropCount, Share
from multicrop.crops.drawn import random
from multicrop.crops.policy import GlobalView, crop_policy


@crop_policy(nested=True, looks_at="tokens")
def feature(
    height: int,
    width: int,
    image_id: str,
    seed: int,
    *,
    n_crops: CropCount,
    min_side: Share,
    max_side: Share,
    view: GlobalView | None = None,
) -> Float[Tensor, "crops 4"]:
    """Draw square boxes, as `random` does, in the part of the image that the global view shows (ABS, ICML 2025).

    The encoder cuts them from the tokens that enter its last block (`Encoder.encode_feature_crops`).

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        n_crops: Crops per image, 1 or more.
        min_side: Shortest side, as a share of the image's shorter side, above 0.
        max_side: Longest side, as a share of the image's shorter side, at most 1.
        view: What the global view shows of the image; without it, the whole image.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (n_crops, 4).

    Raises:
        ValueError: Unless 0 < min_side <= max_side <= 1 and n_crops >= 1.
    """
    left, top, right, bottom = view.rectangle if view else (0.0, 0.0, float(width), float(height))
    x, y = math.ceil(left), math.ceil(top)
    boxes = random(
        max(1, math.floor(bottom) - y),
        max(1, math.floor(right) - x),
        image_id,
        seed,
        n_crops=n_crops,
        min_side=min_side,
        max_side=max_side,
    )
    return boxes + torch.tensor([x, y, x, y], dtype=torch.float32)
