"""Crop samplers: (height, width, image id, seed) -> boxes. Four numbers a crop; pixels come later (views.py).

Every sampler yields the boxes of the crops alone; `boxes_of` puts the global view, the whole image, in slot 0. Box j depends on the
seed, the image id, j, the boxes before it and the image's size only, so 64 crops begin with the same 16 crops.

A box is (x1, top, x2, bottom) in whole pixels. A mirrored crop is a box whose left is greater than its right (x1 > x2): the pixels
between x2 and x1, flipped left to right after resampling (`views.view_pixels`). `views.unmirrored` sorts x for those who draw or measure.
"""

from multicrop.crops.attended import attention
from multicrop.crops.base import CropSampler, boxes_of, crop_generator
from multicrop.crops.drawn import diverse, quasi_random, random, random_resized
from multicrop.crops.fixed import five_crop, global_view, grid, ten_crop
from multicrop.crops.from_features import feature
from multicrop.crops.sighted import GlobalView, Sighted, at_image, looks_at

__all__ = [
    "CropSampler",
    "GlobalView",
    "Sighted",
    "at_image",
    "attention",
    "boxes_of",
    "crop_generator",
    "diverse",
    "feature",
    "five_crop",
    "global_view",
    "grid",
    "looks_at",
    "quasi_random",
    "random",
    "random_resized",
    "ten_crop",
]
