"""What differs between families of dual encoders: pixels, texts, length of a feature, scale of the logits."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multicrop.crops.pixels import PixelSpec

if TYPE_CHECKING:
    import transformers  # seconds of imports, which a bank at hand does not need

RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers in a processor's config
CACHE = 5e6  # bytes of a tower's widest activations at which a forward is fastest on a CPU (two cores, 2 MiB of L2; measured below)
INCIDENTAL = ("transformers_version", "dtype", "torch_dtype", "architectures", "id2label", "label2id")  # of a config: change no feature
UNMASKED = ("siglip_text_model", "siglip2_text_model")  # trained on texts padded to the context, without a mask, in lower case


@dataclass(frozen=True)
class TextRule:
    """How a family reads texts.

    Most towers mask the padding, or are causal and pooled at the end token: there, trimming to the longest text of a batch is exact.
    SigLIP pools the last position and attends to the padding, so every text is padded to the context, and no mask is passed.
    """

    context: int
    padded: bool

    def cleaned(self, text: str) -> str:
        """The text as the tokenizer expects it: SigLIP and SigLIP 2 were trained on lower case."""
        return text.lower() if self.padded else text

    def lengths(self, tokenizer: "transformers.PreTrainedTokenizerBase", texts: list[str]) -> list[int]:
        """The number of tokens of each text."""
        return [len(ids) for ids in tokenizer([self.cleaned(text) for text in texts])["input_ids"]]

    def tokens(self, tokenizer: "transformers.PreTrainedTokenizerBase", texts: list[str]) -> dict[str, Tensor]:
        """The arguments of the text tower for one batch."""
        if self.padded:
            return {"input_ids": tokenizer(texts, padding="max_length", max_length=self.context, return_tensors="pt")["input_ids"]}
        return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def text_rule(model: nn.Module, tokenizer: "transformers.PreTrainedTokenizerBase") -> TextRule:
    """The rule of this model: its context is the size of its position table, or the tokenizer's limit if that is smaller."""
    config = model.config.text_config
    context = config.max_position_embeddings
    for name, module in model.text_model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embedding", "position_embeddings")):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's positions start after its padding index
            context = module.num_embeddings - reserved
    padded = config.model_type in UNMASKED
    return TextRule(context if padded else min(context, tokenizer.model_max_length), padded)


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
    patch, width = getattr(vision, "patch_size", None), getattr(vision, "intermediate_size", None)
    if not patch or not width:
        return 8
    return max(1, round(CACHE / ((side // patch) ** 2 * width * bytes_each)))


def scale_and_bias(model: nn.Module) -> tuple[float, float]:
    """The multiplier of cosines and what is added after it: exp(logit_scale), or 1/temperature (ALIGN); and SigLIP's bias, else 0."""
    if hasattr(model, "temperature"):
        return float(1 / model.temperature.detach().float()), 0.0
    bias = model.logit_bias.detach().float() if hasattr(model, "logit_bias") else 0.0
    return float(model.logit_scale.detach().float().exp()), float(bias)


def pixel_spec(processor: "transformers.BaseImageProcessor", expected: int | None = None) -> PixelSpec:
    """Read what an image processor does to an image.

    Args:
        processor: The model's own image processor.
        expected: The side in pixels that the model needs; None if any side works.

    Returns:
        Side, resizing, mean and standard deviation.

    Raises:
        ValueError: If the processor's views are not squares of one size, or not of the expected side.
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
    mean, std = _normalisation(processor)
    stretch = None if stretched in (None, side) else stretched
    return PixelSpec(side, short, RESAMPLING[int(processor.resample)], mean, std, stretch)


def _normalisation(processor: "transformers.BaseImageProcessor") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in shares of white, such that (pixel / 255 - mean) / std is the processor's output.

    EfficientNet's processor (ALIGN) may take 1 off after rescaling, and may divide by its deviation once more (`include_top`).
    """
    gain = torch.full((3,), processor.rescale_factor if processor.do_rescale else 1.0, dtype=torch.float64) * 255
    offset = torch.full((3,), -1.0 if getattr(processor, "rescale_offset", False) else 0.0, dtype=torch.float64)
    if processor.do_normalize and gain.allclose(torch.ones(3, dtype=torch.float64)) and not offset.any():
        mean, std = ([float(v) for v in values] for values in (processor.image_mean, processor.image_std))
    else:
        shift, divisor = (torch.tensor(values, dtype=torch.float64) for values in (processor.image_mean, processor.image_std))
        if processor.do_normalize:
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


def tokenizer_facts(tokenizer: "transformers.PreTrainedTokenizerBase") -> str:
    """All that decides how a tokenizer cuts texts, as JSON, without padding and truncation, which calls change."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs], sort_keys=True, default=str)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({name: value for name, value in backend.items() if name not in ("padding", "truncation")}, sort_keys=True)
