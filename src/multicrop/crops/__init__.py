"""Crop policies: (height, width, image id, seed) -> boxes. Four numbers per crop; pixels are cut later (pixels.py, resampling.py).

A policy yields the boxes of the crops only; `boxes_of` puts the global view, the whole image, in slot 0. Box j depends on the seed,
the image id, j, the boxes before it and the image only, so that the first 16 of 64 crops are the crops of n_crops=16.

A box is (x1, top, x2, bottom) in whole pixels. A mirrored crop is a box with x1 > x2: the pixels between x2 and x1, flipped left to
right after resampling (`pixels.view_pixels`). `pixels.unmirrored` sorts x for drawing and measuring.

A new policy is one function and one YAML file. What it has beyond boxes is declared by the decorator `crop_policy`.
"""

from multicrop.crops.attended import attention
from multicrop.crops.base import boxes_of, crop_generator
from multicrop.crops.drawn import diverse, quasi_random, random, random_resized
from multicrop.crops.fixed import five_crop, global_view, grid, ten_crop
from multicrop.crops.from_features import feature
from multicrop.crops.policy import CropPolicy, CropSampler, GlobalView, as_policy, crop_policy

__all__ = [
    "CropPolicy",
    "CropSampler",
    "GlobalView",
    "as_policy",
    "attention",
    "boxes_of",
    "crop_generator",
    "crop_policy",
    "diverse",
    "feature",
    "five_crop",
    "global_view",
    "grid",
    "quasi_random",
    "random",
    "random_resized",
    "ten_crop",
]
