"""The only file that knows transformers' dual encoders: unit-norm features of pixels and prompts, and the logit scale."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from multicrop.prompts import TextBank, text_bank
from multicrop.views import PixelSpec

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEXT_BATCH = 256
BYTES = 256  # a tokenizer of fewer tokens is the blank one that transformers makes up where a folder has no tokenizer files
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers in a processor's config


class Encoder(nn.Module):
    """A dual encoder with its tokenizer and pixel facts; features leave it unit-norm in float32."""

    def __init__(self, model: nn.Module, tokenizer: object, spec: PixelSpec, *, name: str, precision: str = "fp32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model, self.tokenizer, self.spec, self.name, self.precision = model.eval(), tokenizer, spec, name, precision
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None] * 255, persistent=False)

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities (100 for OpenAI CLIP)."""
        return float(self.model.logit_scale.detach().float().exp())

    def fingerprint(self) -> str:
        """A hash of all weights, so that a bank never outlives the model that filled it."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def encode_images(self, pixels: UInt8[Tensor, "*batch 3 side side"]) -> Float[Tensor, "*batch dim"]:
        """Unit-norm features of views whose pixels are already at the model's side."""
        flat = (pixels.flatten(0, -4).float() - self.mean) / self.std
        with torch.autocast(pixels.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            features = _pooled(self.model.get_image_features(pixel_values=flat))
        return F.normalize(features.float(), dim=-1).unflatten(0, pixels.shape[:-3])

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Float[Tensor, "texts dim"]:
        """Unit-norm features, in batches of like length trimmed to their longest text.

        Raises ValueError when a text is longer than the model's context.
        """
        limit = self.model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in self.tokenizer(texts)["input_ids"]]
        if max(lengths) > limit:
            worst = texts[lengths.index(max(lengths))]
            raise ValueError(f"{max(lengths)} tokens are over the context of {limit}: {worst[:80]!r}; shorten the text")
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        device = self.mean.device
        parts = []
        for start in range(0, len(order), TEXT_BATCH):
            batch = [texts[index] for index in order[start : start + TEXT_BATCH]]
            tokens = self.tokenizer(batch, padding=True, return_tensors="pt").to(device)
            parts.append(_pooled(self.model.get_text_features(**tokens)).float().cpu())
        position = torch.tensor(order).argsort()
        return F.normalize(torch.cat(parts), dim=-1)[position]

    def encode_prompts(self, prompts: list[list[str]]) -> TextBank:
        """The text bank of one list of prompts a class."""
        return text_bank(prompts, self.encode_texts)


def load_encoder(*, path: str, precision: str = "fp32", revision: str | None = None) -> Encoder:
    """Load a dual encoder from a folder or, with the internet, from the HuggingFace hub by its id.

    Reads safetensors only and runs no code of the checkpoint. Raises ValueError when it cannot be found or is no dual encoder.
    """
    if Path(path).is_file():
        raise ValueError(f"{path} is a file; pass the folder that holds it: model=local model.path={Path(path).parent}")
    disable_progress_bar()
    options = {"revision": revision, "trust_remote_code": False}
    try:
        model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(_load_advice(path, error)) from error
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(
            f"{path} is a {type(model).__name__}, not a dual encoder with an image and a text tower; "
            "choose a CLIP-like checkpoint, for instance model=clip_vit_b16 or model=local model.path=FOLDER"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} has weights but no usable tokenizer or image processor: {error}") from error
    if len(tokenizer) < BYTES:
        raise ValueError(
            f"{path} has weights but no usable tokenizer ({len(tokenizer)} tokens); add its tokenizer files, for instance tokenizer.json"
        )
    name = Path(path).name if Path(path).exists() else path
    return Encoder(model, tokenizer, pixel_spec(processor, model), name=name, precision=precision)


def pixel_spec(processor: object, model: nn.Module) -> PixelSpec:
    """What the processor does to an image, as facts."""
    size = dict(processor.size)
    short = size.get("shortest_edge")
    crop = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else {}
    side = crop.get("height") or size.get("height") or short
    expected = model.config.vision_config.image_size
    if side != expected:
        raise ValueError(f"the image processor makes {side} px views, the model wants {expected}; mend its preprocessor config")
    resample = getattr(processor.resample, "value", processor.resample)
    mean, std = (tuple(float(v) for v in values) for values in (processor.image_mean, processor.image_std))
    return PixelSpec(side, short, RESAMPLING[int(resample)], mean, std)


def _pooled(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def _load_advice(path: str, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    if Path(path).is_dir():
        return f"{path} holds no safetensors checkpoint that transformers can load ({reason})"
    return (
        f"the model {path!r} is neither a folder here nor reachable on the HuggingFace hub ({reason}). Check the name and the network, "
        "or download it elsewhere and pass model=local model.path=FOLDER; model=tiny needs no network"
    )
