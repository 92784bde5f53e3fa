"""Image + boxes -> pixels of all views: one decode, antialiased bicubic resampling on uint8 (torchvision v2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class PixelSpec:
    """How a model wants its pixels: what its own image processor does, reduced to facts.

    `short_side` is what the shorter side is resized to before the centre crop of `side`; None when the processor stretches the whole
    image to `side` x `side` (SigLIP).
    """

    side: int
    short_side: int | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def global_pixels(image: UInt8[Tensor, "3 height width"], spec: PixelSpec) -> UInt8[Tensor, "3 side side"]:
    """The whole image as the model's own processor prepares it."""
    mode = InterpolationMode(spec.interpolation)
    if spec.short_side is None:
        return F.resize(image, [spec.side, spec.side], mode, antialias=True)
    return F.center_crop(F.resize(image, [spec.short_side], mode, antialias=True), [spec.side, spec.side])


def view_pixels(
    image: UInt8[Tensor, "3 height width"], boxes: Float[Tensor, "views 4"], spec: PixelSpec
) -> UInt8[Tensor, "views 3 side side"]:
    """The global view in slot 0, then each crop resampled to the model's side; a crop that is not square is stretched.

    Whole-number pixels (x1, top, x2, bottom); where x1 > x2 the crop is mirrored after resampling.
    """
    mode, size = InterpolationMode(spec.interpolation), [spec.side, spec.side]
    views = [global_pixels(image, spec)]
    for x1, top, x2, bottom in boxes[1:].int().tolist():
        view = F.resized_crop(image, top, min(x1, x2), bottom - top, abs(x2 - x1), size, mode, antialias=True)
        views.append(F.horizontal_flip(view) if x1 > x2 else view)
    return torch.stack(views)


def unmirrored(boxes: Float[Tensor, "views 4"]) -> Float[Tensor, "views 4"]:
    """The rectangles (left, top, right, bottom) of boxes that may be mirrored: x sorted, pixels as before."""
    x = boxes[:, [0, 2]].sort(dim=1).values
    return torch.stack([x[:, 0], boxes[:, 1], x[:, 1], boxes[:, 3]], dim=1)
