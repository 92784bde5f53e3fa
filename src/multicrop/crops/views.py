"""The views of one image: the boxes that a crop policy draws and the pixels inside them."""

import math
from typing import NotRequired, TypedDict

from jaxtyping import Float, UInt8
from torch import Tensor

from multicrop.crops.base import boxes_of
from multicrop.crops.pixels import PixelSpec, view_pixels
from multicrop.crops.policy import CropPolicy, CropSampler, as_policy


class ViewGroup(TypedDict):
    """Neighbouring images that are encoded together.

    `pixels` are those of the readable images: views (resampled,3,side,side), or the decoded images, to be cut on the device.
    """

    pixels: Tensor | list[Tensor]
    boxes: Tensor  # (images,views,4)
    readable: Tensor  # (images)
    index: NotRequired[Tensor]  # (images)
    vectors: NotRequired[Tensor]  # (readable,views,dim), imported features, in place of pixels


def image_views(
    pixels: UInt8[Tensor, "channels height width"], image_id: str, sampler: CropSampler, spec: PixelSpec, seed: int
) -> tuple[UInt8[Tensor, "resampled 3 side side"], Float[Tensor, "views 4"]]:
    """Cut the views of one image.

    Args:
        pixels: The decoded image; channels beyond the third are ignored.
        image_id: The key of the image's crops.
        sampler: The crop policy.
        spec: The pixels that the model expects.
        seed: Seed of the crops.

    Returns:
        Pixels and boxes of the views. Where crops are cut from the model's tokens, the pixels are those of the global view alone.

    Raises:
        ValueError: If the policy looks at the image and has no encoder attached.
    """
    policy = as_policy(sampler)
    boxes = image_boxes(pixels, image_id, policy, seed)
    return view_pixels(pixels, resampled_boxes(boxes, policy), spec), boxes


def image_boxes(pixels: UInt8[Tensor, "channels height width"], image_id: str, policy: CropPolicy, seed: int) -> Float[Tensor, "views 4"]:
    """The boxes of the views of one image, the global view first."""
    height, width = pixels.shape[1:]
    return boxes_of(policy.at(pixels[:3]), height, width, image_id, seed)


def resampled_boxes(boxes: Float[Tensor, "views 4"], policy: CropPolicy) -> Float[Tensor, "resampled 4"]:
    """The boxes whose pixels are resampled: all, or the global view alone where crops are cut from its tokens."""
    return boxes[:1] if policy.looks_at == "tokens" else boxes


def sufficient_side(policy: CropPolicy, spec: PixelSpec) -> int | None:
    """The shorter side of an image, pixels, from which every view is at least twice as large as the model reads it.

    There, decoding at a smaller scale changes views by less than two grey levels on average. None for a policy that draws crops without
    stating their shortest side (`min_side`, a share of the shorter side of the image), and for a NaFlex model, whose tokens follow the
    pixels.
    """
    if spec.buckets is not None:
        return None
    whole = 2 * max(spec.side, spec.short_side or 0, spec.stretched_side or 0)
    if policy.looks_at == "tokens" or policy.n_crops == 0:
        return whole
    share = policy.knobs.get("min_side")
    return None if share is None else max(whole, math.ceil(2 * (spec.crop_side or spec.side) / share))
