"""Features of the packed views of a NaFlex model (SigLIP 2): views of one bucket of tokens are encoded together."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from multicrop.crops.native import packed_side, slots_of
from multicrop.crops.pixels import PixelSpec
from multicrop.encoder.facts import RESAMPLING, normalisation, views_of_tokens
from multicrop.encoder.image_tower import pooled
from multicrop.encoder.precisions import DTYPES

if TYPE_CHECKING:
    import transformers  # seconds of imports, which a bank at hand does not need

BUCKETS = (64, 100, 144, 196, 256)  # squares, so that a square crop fills its bucket


def is_native(model: nn.Module) -> bool:
    """Whether the number and shape of the patches follow each view."""
    return model.config.model_type == "siglip2"


def native_spec(processor: "transformers.BaseImageProcessor", buckets: tuple[int, ...] | None) -> PixelSpec:
    """What a NaFlex model's image processor does, with our rule of tokens; raises ValueError for buckets that are none."""
    buckets = tuple(sorted(BUCKETS if buckets is None else buckets))
    if not buckets or buckets[0] < 1 or len(set(buckets)) != len(buckets):
        raise ValueError(f"model.token_buckets are different numbers of tokens, such as {list(BUCKETS)}, got {list(buckets)}")
    mean, std = normalisation(processor)
    side = packed_side(processor.patch_size, buckets)
    return PixelSpec(side, None, RESAMPLING[int(processor.resample)], mean, std, buckets=buckets, patch=processor.patch_size)


def check_native(name: str, precision: str, *, compile: bool, crop_side: int | None) -> None:
    """Raise ValueError for what needs views of one size."""
    if precision not in DTYPES or compile:
        what = "model.compile=true" if compile else f"precision {precision}"
        raise ValueError(
            f"{name} reads a number of tokens that follows each view, which {what} does not: choose model.precision=bf16 alone"
        )
    if crop_side is not None:
        raise ValueError(f"model.crop_side is for views of one side; {name} has model.token_buckets instead, such as [64]")


def native_features(
    model: nn.Module, values: Float[Tensor, "views 3 side side"], grids: Int[Tensor, "views 2"], spec: PixelSpec
) -> Float[Tensor, "views dim"]:
    """Features, not normalised, of packed and normalised views of these grids; a feature depends on no other view of the batch."""
    slots, counts = slots_of(values, spec.patch), grids.prod(1)
    places, features, smaller = [], [], 0
    for bucket in spec.buckets:
        chosen = ((counts > smaller) & (counts <= bucket)).nonzero()[:, 0]
        smaller, on_cpu = bucket, values.device.type == "cpu"
        if not len(chosen):
            continue
        for part in chosen.split(views_of_tokens(model, bucket, values.element_size()) if on_cpu else len(chosen)):
            mask = torch.arange(bucket, device=values.device) < counts[part, None]
            tokens = slots[part, :bucket] * mask[..., None]
            output = model.get_image_features(pixel_values=tokens, pixel_attention_mask=mask.int(), spatial_shapes=grids[part])
            places.append(part)
            features.append(pooled(output))
    return torch.cat(features)[torch.cat(places).argsort()]
