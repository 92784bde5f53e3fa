"""The boxes of one image, checked before a bank is filled with them: whole pixels, inside the image, the same when drawn again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multicrop.crops.policy import CropPolicy

KEYED = "draw from multicrop.crops.crop_generator(seed, image_id, index), which every process, thread and order gives the same numbers"

CALLS = 5  # of which another thread that draws, as a data loader does once, changes the shared generators in one


def check_policy(policy: CropPolicy, pixels: Tensor, image_id: str, seed: int) -> None:
    """Check the boxes that a crop policy draws for one image.

    Args:
        policy: The policy, with an encoder attached where it looks at images.
        pixels: The image, uint8, shape (channels, height, width).
        image_id: The key of the image's crops.
        seed: Seed of the crops.

    Raises:
        ValueError: If the boxes have another shape or number, are not in whole pixels, empty or outside the image, differ when they are
            drawn again, or come from a global generator.
    """
    height, width = pixels.shape[1:]
    bound, name = policy.at(pixels[:3]), getattr(policy.function, "__name__", repr(policy.function))
    if _draws_globally(lambda: bound(height, width, image_id, seed)):
        raise ValueError(f"the crop policy {name} draws from the global generator of torch or numpy; {KEYED}")
    boxes = bound(height, width, image_id, seed)
    if not isinstance(boxes, Tensor) or boxes.shape != (policy.n_crops, 4):
        got = f"shape {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ValueError(f"the crop policy {name} gives a tensor (crops, 4) of as many crops for every image: {policy.n_crops}, got {got}")
    for index, box in enumerate(boxes.tolist()):
        if (wrong := _fault(box, height, width)) is not None:
            raise ValueError(
                f"box {index} of the crop policy {name} {wrong}: {box} in image {image_id} of {width} x {height} pixels; a box is (x1, "
                "top, x2, bottom) in whole pixels with 0 <= x <= width and 0 <= top < bottom <= height, x1 > x2 where the crop is mirrored"
            )
    if not torch.equal(boxes, bound(height, width, image_id, seed)):
        raise ValueError(f"the crop policy {name} draws other boxes when it is called again for the image {image_id}; {KEYED}")


def _draws_globally(draw: Callable[[], object]) -> bool:
    """Whether every call changes the generators that all code shares; another thread may change them during one of the calls."""
    for number in range(CALLS):
        if number:  # away from the state that a policy which seeds them leaves
            torch.rand(())
            np.random.rand()
        before = _global_state()
        draw()
        if _same_state(before, _global_state()):
            return False
    return True


def _fault(box: list[float], height: int, width: int) -> str | None:
    """What is wrong with a box; None where nothing is."""
    x1, top, x2, bottom = box
    if any(value != value or value in (float("inf"), float("-inf")) or value != int(value) for value in box):
        return "is not in whole pixels"
    if x1 == x2 or top >= bottom:
        return "is empty"
    return "leaves the image" if min(x1, x2, top) < 0 or max(x1, x2) > width or bottom > height else None


def _same_state(one: tuple[Tensor, Any], other: tuple[Tensor, Any]) -> bool:
    return torch.equal(one[0], other[0]) and np.array_equal(one[1][1], other[1][1]) and one[1][2:] == other[1][2:]


def _global_state() -> tuple[Tensor, Any]:
    """The state of the generators of torch and numpy that all code shares; Python's own is drawn from by libraries that check types."""
    return torch.random.get_rng_state(), np.random.get_state()
