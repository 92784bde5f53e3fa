"""Image and boxes -> pixels of all views: one decode, antialiased resampling on uint8 (torchvision v2)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, pad

from multicrop.crops.native import packed


@dataclass(frozen=True)
class PixelSpec:
    """What a model's image processor does; pixels enter the model as (pixel / 255 - mean) / std.

    Args:
        side: Side of the square that enters the model, pixels.
        short_side: What the shorter side is resized to before the centre crop of `side`, pixels; None where the processor stretches the
            whole image to a square of `side` (SigLIP) or, before the centre crop, of `stretched_side` (ALIGN).
        interpolation: ``"bilinear"``, ``"bicubic"`` or another mode of torchvision.
        mean: Mean per channel, in 0-1.
        std: Standard deviation per channel, in 0-1.
        stretched_side: See `short_side`.
        crop_side: Side of crops, pixels, under `side`; None for `side`. A view of `side` then holds its crop in the top left corner, and
            zeros elsewhere.
        centre: How half a pixel of the centre crop is rounded: ``"down"`` as transformers does, ``"even"`` as torchvision and open_clip.
        fill: Grey level around an image whose longer side is resized to `side`, so that all of it is shown (open_clip's ``longest``); None
            where nothing is padded.
        buckets: Numbers of tokens that a view may have, for a NaFlex model, whose views are packed (`native`); None for views of one size.
        patch: Side of a patch of a NaFlex model, pixels.
    """

    side: int
    short_side: int | None
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stretched_side: int | None = None
    crop_side: int | None = None
    centre: str = "down"
    fill: int | None = None
    buckets: tuple[int, ...] | None = None
    patch: int | None = None


def global_pixels(image: UInt8[Tensor, "channels height width"], spec: PixelSpec) -> UInt8[Tensor, "channels side side"]:
    """The global view: the image as the model's own processor prepares it, without normalisation."""
    if spec.buckets is not None:
        return packed(image, spec.side, spec.patch, spec.buckets, spec.interpolation)
    from torchvision.transforms.v2 import InterpolationMode  # seconds of imports, which a bank at hand does not need
    from torchvision.transforms.v2 import functional as F

    mode = InterpolationMode(spec.interpolation)
    height, width = image.shape[1:]
    rows, columns = _resized(height, width, spec)
    top, left = _corner(rows, columns, spec)
    whole = F.resize(image, [rows, columns], mode, antialias=True)
    if spec.fill is not None:
        return pad(whole, (-left, spec.side - columns + left, -top, spec.side - rows + top), value=spec.fill)
    return F.crop(whole, top, left, spec.side, spec.side)


def shown(height: int, width: int, spec: PixelSpec) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of an image that its global view shows, in the image's pixels."""
    rows, columns = _resized(height, width, spec)
    y, x = _corner(rows, columns, spec)
    down, across = height / rows, width / columns
    return x * across, y * down, (x + spec.side) * across, (y + spec.side) * down


def shares_of_view(boxes: Float[Tensor, "*batch views 4"], spec: PixelSpec) -> Float[Tensor, "*batch crops 4"]:
    """The boxes of the crops as shares of the global view; slot 0 of the boxes is the whole image and gives its size."""
    rows = []
    for image in boxes.reshape(-1, *boxes.shape[-2:]).tolist():
        left, top, right, bottom = shown(int(image[0][3]), int(image[0][2]), spec)
        across, down = right - left, bottom - top
        rows.append([[(a - left) / across, (b - top) / down, (c - left) / across, (d - top) / down] for a, b, c, d in image[1:]])
    return torch.tensor(rows, device=boxes.device).reshape(*boxes.shape[:-2], boxes.shape[-2] - 1, 4)


def _corner(rows: int, columns: int, spec: PixelSpec) -> tuple[int, int]:
    """The top and left of the centre crop; negative where the image is padded instead."""
    if spec.fill is not None:
        return -((spec.side - rows) // 2), -((spec.side - columns) // 2)
    rounded = round if spec.centre == "even" else int
    return rounded((rows - spec.side) / 2), rounded((columns - spec.side) / 2)


def _resized(height: int, width: int, spec: PixelSpec) -> list[int]:
    """The height and width that the image is resized to before its centre crop."""
    if spec.fill is not None:
        return [round(length / (max(height, width) / spec.side)) for length in (height, width)]
    if spec.short_side is None:
        return [spec.stretched_side or spec.side] * 2
    short, long = min(height, width), int(spec.short_side * max(height, width) / min(height, width))
    return [spec.short_side, long] if height == short else [long, spec.short_side]


def view_pixels(
    image: UInt8[Tensor, "channels height width"], boxes: Float[Tensor, "views 4"], spec: PixelSpec
) -> UInt8[Tensor, "views 3 side side"]:
    """Cut the views of an image: the global view, then each crop resampled to the model's side; a crop that is not square is stretched.

    Args:
        image: Pixels, uint8, shape (channels, height, width); channels beyond the third are left out of the views.
        boxes: Boxes (x1, top, x2, bottom) in whole pixels; where x1 > x2 the crop is mirrored after resampling.
        spec: What the model's image processor does.

    Returns:
        Pixels, uint8, shape (views, 3, side, side).
    """
    return torch.stack(separate_views(image, boxes, spec))


def separate_views(
    image: UInt8[Tensor, "channels height width"], boxes: Float[Tensor, "views 4"], spec: PixelSpec
) -> list[UInt8[Tensor, "3 side side"]]:
    """The views of `view_pixels` as a list, so that the views of several images are stacked at once."""
    side = spec.crop_side or spec.side
    small, border = replace(spec, side=side), (0, spec.side - side, 0, spec.side - side)
    crops = [crop_pixels(image, *box, spec=small) for box in boxes[1:].int().tolist()]
    return [global_pixels(image, spec)[:3], *(crops if side == spec.side else [pad(crop, border) for crop in crops])]


def crop_pixels(
    image: UInt8[Tensor, "channels height width"], x1: int, top: int, x2: int, bottom: int, *, spec: PixelSpec
) -> UInt8[Tensor, "3 side side"]:
    """One crop of `view_pixels`, at `side` of the specification."""
    crop = image[None, :, top:bottom, min(x1, x2) : max(x1, x2)]
    if spec.buckets is not None:
        return global_pixels(crop[0, :3].flip(-1) if x1 > x2 else crop[0, :3], spec)
    view = interpolate(crop, (spec.side, spec.side), mode=spec.interpolation, antialias=True)[
        0, :3
    ]  # what torchvision's resize calls, a tenth cheaper
    return view.flip(-1) if x1 > x2 else view


def unmirrored(boxes: Float[Tensor, "views 4"]) -> Float[Tensor, "views 4"]:
    """The rectangles (left, top, right, bottom) of boxes that may be mirrored."""
    x = boxes[:, [0, 2]].sort(dim=1).values
    return torch.stack([x[:, 0], boxes[:, 1], x[:, 1], boxes[:, 3]], dim=1)
