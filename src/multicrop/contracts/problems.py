"""Small encoders, texts and features that the contract tests share with the tests of the repository."""

import functools

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from multicrop.adapters.base import Examples
from multicrop.encoder import Encoder, load_encoder
from multicrop.text import TextBank


@functools.cache
def tiny_encoder() -> Encoder:
    """The embedded encoder, loaded once."""
    return load_encoder("tiny")


@functools.cache
def random_encoder(dim: int = 16) -> Encoder:
    """A CLIP of random weights with features of ``dim``, and the embedded tokenizer."""
    tiny = tiny_encoder()
    settings = tiny.model.config.to_dict() | {"projection_dim": dim}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": dim}
    for tower in ("text_config", "vision_config"):
        settings[tower] = settings[tower] | small
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(**settings))
    return Encoder(model, tiny.tokenizer, tiny.spec, name="random")


def unit(*shape: int, generator: torch.Generator) -> Tensor:
    """Random features of unit norm."""
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def random_text(generator: torch.Generator, *, classes: int = 5, prompts: int = 4, dim: int = 16) -> TextBank:
    """A ragged text bank: class c has 2 to ``prompts`` prompts."""
    counts = [2 + c % (prompts - 1) for c in range(classes)]
    features, mask = torch.zeros(classes, max(counts), dim), torch.zeros(classes, max(counts), dtype=torch.bool)
    for c, count in enumerate(counts):
        features[c, :count], mask[c, :count] = unit(count, dim, generator=generator), True
    return TextBank(features, mask, [[f"class {c} text {m}" for m in range(count)] for c, count in enumerate(counts)])


def picture() -> Image.Image:
    """Coloured noise, 120 x 96 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((120, 96), Image.Resampling.BICUBIC)


def separable(generator: torch.Generator, images: int = 24, classes: int = 4) -> Examples:
    """Separable views, with text logits that carry no information."""
    labels = torch.arange(images) % classes
    centres = unit(classes, 16, generator=generator)
    views = torch.nn.functional.normalize(centres[labels][:, None] + 0.3 * torch.randn(images, 3, 16, generator=generator), dim=-1)
    return Examples(views, 0.01 * torch.randn(images, classes, generator=generator), labels)


def blurred(features: Float[Tensor, "rows one dim"], by: float, generator: torch.Generator) -> Float[Tensor, "rows 3 dim"]:
    """Three noisy copies of each feature, of unit norm."""
    noise = torch.randn(len(features), 3, features.shape[2], generator=generator)
    return torch.nn.functional.normalize(features + by * noise, dim=-1)
