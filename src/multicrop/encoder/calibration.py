"""int8_static: the views of calibration images, on which the ranges of activations are fixed."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from multicrop.crops import boxes_of, random
from multicrop.crops.pixels import PixelSpec, view_pixels
from multicrop.data.images import to_tensor

CROPS = partial(random, n_crops=16, min_side=0.3, max_side=0.9)

Calibration = Callable[[], Iterable[tuple[str, Image.Image]]]  # (id, RGB image) pairs


def calibration_views(images: Iterable[tuple[str, Image.Image]], spec: PixelSpec) -> UInt8[Tensor, "images views 3 side side"]:
    """The global view and 16 random crops of each (id, image) pair; the id keys the crops, so every process gets the same views.

    Raises ValueError if there is no image.
    """
    views = []
    for image_id, image in images:
        pixels = to_tensor(image)
        views.append(view_pixels(pixels, boxes_of(CROPS, *pixels.shape[1:], image_id, 0), spec))
    if not views:
        raise ValueError("calibration gave no image; precision=int8_static needs about 40 that look like the images to be encoded")
    return torch.stack(views)


def check_calibration(precision: str, calibration: Calibration | None) -> None:
    """Raise ValueError if the precision needs calibration images and there is no function that gives them."""
    if precision == "int8_static" and not callable(calibration):
        raise ValueError(
            "precision int8_static fixes the ranges of activations on images: pass calibration=FUNCTION that gives (id, RGB image) pairs, "
            f"got {calibration!r}. In Python: multicrop.data.calibration.calibration_images, or partial(calibration_images, FOLDER). "
            "Precision int8 needs no images"
        )
