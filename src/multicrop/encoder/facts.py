"""What differs between families of dual encoders: pixels, length of a feature, scale of the logits."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import nn

from multicrop.crops.pixels import PixelSpec, global_pixels

if TYPE_CHECKING:
    import transformers  # seconds of imports, which a bank at hand does not need

RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers in a processor's config
CACHE = 5e6  # bytes of a tower's widest activations at which a forward is fastest on a CPU (two cores, 2 MiB of L2; measured below)
ALIKE = 0.03  # mean difference, as a share of white, that resampling may make; a step that is left out makes 0.08 and more
INCIDENTAL = ("transformers_version", "dtype", "torch_dtype", "architectures", "id2label", "label2id")  # of a config: change no feature


def side_of(model: nn.Module) -> int | None:
    """The side in pixels that the image tower needs; None where any works: networks of convolutions, TIPSv2, NaFlex."""
    vision = model.config.vision_config
    fixed = hasattr(vision, "patch_size") and vision.model_type != "tipsv2_vision_model"
    side = getattr(vision, "image_size", None) if fixed else None
    return side if side is None or isinstance(side, int) else side[0]


def feature_dim(model: nn.Module) -> int:
    """The length of a feature: the projection's, or the image tower's width where it has none (SigLIP)."""
    config = model.config
    return getattr(config, "projection_dim", None) or config.vision_config.hidden_size


def views_in_cache(model: nn.Module, side: int, bytes_each: int) -> int:
    """Views whose widest activations (tokens x inner width of the MLP) fill CACHE: about the fastest batch size on a CPU.

    ViT-B/32 in fp32 takes 54 ms per view with 8 at once, 62 with 68; the embedded model 1.14 ms with 34, 1.34 with 8, 1.49 with 68. For a
    tower that is not a vision transformer: 8.
    """
    vision = model.config.vision_config
    patch, inner = getattr(vision, "patch_size", None), getattr(vision, "intermediate_size", None)
    width = inner or getattr(vision, "hidden_size", 0) * getattr(vision, "mlp_ratio", 0)
    return views_of_tokens(model, (side // patch) ** 2, bytes_each) if isinstance(patch, int) and width else 8


def views_of_tokens(model: nn.Module, tokens: int, bytes_each: int) -> int:
    """Views of so many tokens whose widest activations fill CACHE."""
    vision = model.config.vision_config
    width = getattr(vision, "intermediate_size", None) or vision.hidden_size * vision.mlp_ratio
    return max(1, round(CACHE / (tokens * width * bytes_each)))


def scale_and_bias(model: nn.Module) -> tuple[float, float]:
    """The multiplier of cosines and what is added after it: exp(logit_scale), or 1/temperature (ALIGN, TIPSv2); SigLIP's bias, else 0.

    AIMv2 limits its multiplier to 1 to `max_logit_scale`.
    """
    if hasattr(model, "temperature"):
        return float(1 / model.temperature.detach().float()), 0.0
    bias = model.logit_bias.detach().float() if hasattr(model, "logit_bias") else 0.0
    scale = model.logit_scale.detach().float()
    if limit := getattr(model.config, "max_logit_scale", None):
        scale = scale.clamp(0, math.log(limit))
    return float(scale.exp()), float(bias)


def pixel_spec(processor: "transformers.BaseImageProcessor", expected: int | None = None) -> PixelSpec:
    """Read what an image processor does to an image.

    Args:
        processor: The model's own image processor.
        expected: The side in pixels that the model needs; None if any side works.

    Returns:
        Side, resizing, mean and standard deviation.

    Raises:
        ValueError: If the processor's views are not squares of one size, or not of the expected side, or if it changes an image in a way
            that is not read here, such as padding, another order of channels or a margin that is cut off.
    """
    size = {name: value for name, value in dict(processor.size or {}).items() if value}
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    short, stretched = size.get("shortest_edge"), size.get("height")
    side = crop.get("height") or stretched or short
    widths = (crop.get("width", side), side if crop or short else size.get("width"))
    if not processor.do_resize or side is None or any(width != side for width in widths):
        raise ValueError(
            f"views are squares of one size, but the image processor {type(processor).__name__} makes size={size}, crop={crop}; "
            "change its preprocessor config, or choose a checkpoint of a fixed resolution"
        )
    if expected is not None and side != expected:
        raise ValueError(f"the image processor makes {side} px views, the model needs {expected}; change its preprocessor config")
    if int(processor.resample) not in RESAMPLING:
        raise ValueError(f"resample is one of {RESAMPLING}, got {processor.resample}; change the preprocessor config")
    mean, std = normalisation(processor)
    stretch = None if stretched in (None, side) else stretched
    spec = PixelSpec(side, short, RESAMPLING[int(processor.resample)], mean, std, stretch)
    with one_thread():
        apart = _apart(processor, spec)
    if apart > ALIKE:
        raise ValueError(
            f"the image processor {type(processor).__name__} does more than its size, crop, rescaling and normalisation say: pixels of a "
            f"test image are {apart:.2f} of their range apart on average. It may pad, reorder channels (do_flip_channel_order) or cut off "
            "a margin (crop_pct), which is not supported; change its preprocessor config if the model was trained without, or choose "
            "another checkpoint"
        )
    return spec


def _apart(processor: "transformers.BaseImageProcessor", spec: PixelSpec) -> float:
    """The mean difference of our pixels of a coloured pattern from those of the processor, as a share of white."""
    rows, columns = (torch.arange(factor * spec.side // 4) / spec.side for factor in (5, 7))
    phases = torch.tensor([0.0, 2.0, 4.0])[:, None, None]
    waves = torch.sin(9 * rows[:, None] + phases) * torch.cos(7 * columns + phases)
    image = (127.5 * (waves + 1)).round().to(torch.uint8)
    theirs = torch.as_tensor(processor(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"][0])
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return float((theirs * std + mean - global_pixels(image, spec) / 255).abs().mean())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: sums do not depend on the number of threads, and no pool is started, with which children forked later hang."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def normalisation(processor: "transformers.BaseImageProcessor") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in shares of white, such that (pixel / 255 - mean) / std is the processor's output.

    EfficientNet's processor (ALIGN) may take 1 off after rescaling, and may divide by its deviation once more (`include_top`).
    """
    gain = torch.full((3,), processor.rescale_factor if processor.do_rescale else 1.0, dtype=torch.float64) * 255
    offset = torch.full((3,), -1.0 if getattr(processor, "rescale_offset", False) else 0.0, dtype=torch.float64)
    if processor.do_normalize and gain.allclose(torch.ones(3, dtype=torch.float64)) and not offset.any():
        mean, std = ([float(v) for v in values] for values in (processor.image_mean, processor.image_std))
    else:
        if processor.do_normalize:
            shift, divisor = (torch.tensor(values, dtype=torch.float64) for values in (processor.image_mean, processor.image_std))
            gain, offset = gain / divisor, (offset - shift) / divisor
        mean, std = (-offset / gain).tolist(), (1 / gain).tolist()
    if getattr(processor, "include_top", False):
        scale = torch.tensor(processor.image_std, dtype=torch.float64)
        std = (torch.tensor(std, dtype=torch.float64) * scale).tolist()
    return tuple(mean), tuple(std)


def architecture(model: nn.Module) -> str:
    """The model's class and configuration as JSON, without where it was loaded from: with the weights, all that decides its features."""

    def decisive(node: dict) -> dict:
        kept = {name: value for name, value in node.items() if name not in INCIDENTAL and not name.startswith("_")}
        return {name: decisive(value) if isinstance(value, dict) else value for name, value in kept.items()}

    config = json.loads(json.dumps(model.config.to_dict(), default=str))
    return json.dumps([type(model).__name__, decisive(config)], sort_keys=True)
