"""Square crops around the patches that the model attends to (ABS, ICML 2025)."""

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.config.ranges import Count, CropCount, Positive, Share
from multicrop.crops.base import crop_generator
from multicrop.crops.drawn import check_sides
from multicrop.crops.policy import GlobalView, crop_policy


@crop_policy(nested=True, looks_at="attention")
def attention(
    height: int,
    width: int,
    image_id: str,
    seed: int,
    *,
    n_crops: CropCount,
    min_side: Share,
    max_side: Share,
    top_patches: Count,
    temperature: Positive,
    backbone: str | None = None,
    view: GlobalView | None = None,
) -> Float[Tensor, "crops 4"]:
    """Draw square crops around the patches that the model attends to (ABS, ICML 2025).

    A side is uniform in [min_side, max_side] of the shorter side. Its centre is one of the `top_patches` patches of the global view with
    the most attention, drawn with softmax(attention / temperature), where attention is the share that the last block's class token gives
    to each patch. Squares are moved into the image.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        image_id: Identifier of the image within its data set.
        seed: Seed of the crops.
        n_crops: Crops per image, 1 or more.
        min_side: Shortest side, as a share of the image's shorter side, above 0.
        max_side: Longest side, as a share of the image's shorter side, at most 1.
        top_patches: Patches that a centre is drawn from, 1 or more.
        temperature: Temperature of the softmax over shares of attention, above 0.
        backbone: Folder or id of another vision transformer whose attention is used; None: the image tower's own.
        view: What the global view shows of the image, with attention; without it all patches weigh the same.

    Returns:
        Boxes (x1, top, x2, bottom) in whole pixels, shape (n_crops, 4).

    Raises:
        ValueError: Unless 0 < min_side <= max_side <= 1, n_crops >= 1, top_patches >= 1 and temperature > 0.
    """
    check_sides(n_crops, min_side, max_side)
    if top_patches < 1 or temperature <= 0:
        raise ValueError(f"attention expects top_patches >= 1 and temperature > 0, got {top_patches} and {temperature}")
    view = view or GlobalView((0.0, 0.0, float(width), float(height)))
    weights = torch.ones(14, 14) if view.attention is None else view.attention
    best, patches = weights.flatten().double().topk(min(top_patches, weights.numel()))
    mass = torch.softmax(best / temperature, dim=0).cumsum(0)
    boxes = []
    for index in range(n_crops):
        size, luck = torch.rand(2, generator=crop_generator(seed, image_id, index), dtype=torch.float64).tolist()
        chosen = int(patches[(mass < luck * float(mass[-1])).sum().clamp(max=len(patches) - 1)])
        side = max(1, round(min(height, width) * (min_side + (max_side - min_side) * size)))
        boxes.append(_around(_centre(chosen, weights.shape, view.rectangle), side, height, width))
    return torch.tensor(boxes, dtype=torch.float32)


def _centre(patch: int, shape: tuple[int, ...], rectangle: tuple[float, float, float, float]) -> tuple[float, float]:
    """The pixel (x, y) at the middle of a patch, counted row by row."""
    left, top, right, bottom = rectangle
    row, column = divmod(patch, shape[1])
    return left + (column + 0.5) / shape[1] * (right - left), top + (row + 0.5) / shape[0] * (bottom - top)


def _around(centre: tuple[float, float], side: int, height: int, width: int) -> list[int]:
    """The square of this side around a point, moved into the image."""
    left = min(max(round(centre[0] - side / 2), 0), width - side)
    top = min(max(round(centre[1] - side / 2), 0), height - side)
    return [left, top, left + side, top + side]
