"""Crops of the model's token grid instead of its pixels (ABS, ICML 2025): boxes as `random` draws them, in what the model is shown."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.crops.drawn import random
from multicrop.crops.sighted import GlobalView


def feature(
    height: int,
    width: int,
    image_id: str,
    seed: int,
    *,
    n_crops: int,
    min_side: float,
    max_side: float,
    view: GlobalView | None = None,
) -> Float[Tensor, "crops 4"]:
    """Square boxes as `random` draws them in the part of the image that the global view shows (whole pixels of the image).

    The encoder cuts them from the tokens that enter its last block (Encoder.encode_feature_crops). Without a view, the whole image
    is shown. Raises ValueError as `random` does.
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


feature.looks_at = "tokens"
