"""The pictures that fix the ranges of int8_static's activations: embedded training scenes, or a folder of the user's own."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from multicrop.crops import boxes_of, random
from multicrop.crops.pixels import PixelSpec, view_pixels
from multicrop.data.base import LabelledImages, file_images
from multicrop.data.embedded.artwork import HELD_OUT_VENDORS
from multicrop.data.embedded.scenes import scenes
from multicrop.data.images import to_tensor
from multicrop.data.sources.folder import SUFFIXES

PICTURES = 40
CROPS = partial(random, n_crops=16, min_side=0.3, max_side=0.9)
SCENES = {
    "vendor": HELD_OUT_VENDORS[0],
    "n_classes": PICTURES,
    "family_size": 4,
    "n_objects": 4,
    "object_side": (0.30, 0.42),
    "distractors": 0,
    "background": "mixed",
    "canvas": 240,
    "test_images": 1,
    "train_images": 1,
    "validation_images": 1,
    "dataset_seed": 0,
}


def calibration_views(folder: str | None, spec: PixelSpec) -> UInt8[Tensor, "pictures views 3 side side"]:
    """The global view and 16 random crops of PICTURES pictures: scenes of the embedded training drawings, or those of `folder`.

    A folder is searched at any depth; of more pictures it gives PICTURES evenly spaced by path, of fewer all. The same pictures give the
    same views in every process. Raises ValueError for a folder that is missing or holds no picture, ImageError for a picture that cannot
    be read.
    """
    images = _own(Path(folder).expanduser()) if folder else _embedded()
    chosen = np.linspace(0, len(images) - 1, min(PICTURES, len(images))).round().astype(int).tolist()
    return torch.stack([_views(images, index, spec) for index in chosen])


def _views(images: LabelledImages, index: int, spec: PixelSpec) -> UInt8[Tensor, "views 3 side side"]:
    pixels = to_tensor(images.open(index))
    return view_pixels(pixels, boxes_of(CROPS, *pixels.shape[1:], images.ids[index], 0), spec)


def _embedded() -> LabelledImages:
    return scenes(**SCENES).train


def _own(base: Path) -> LabelledImages:
    paths = sorted(path for path in base.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(
            f"model.calibration={base} is no folder with pictures ({', '.join(sorted(SUFFIXES))}); pass one with about {PICTURES} "
            "that look like yours, or model.calibration=null for the embedded scenes"
        )
    return file_images(base.name, [path.relative_to(base).as_posix() for path in paths], [0] * len(paths), paths)
