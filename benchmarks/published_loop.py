"""The multi-crop loop as WCA describes it: PIL decodes the image and preprocesses each crop; one fp32 forward pass per image."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from multicrop.pretrain.module import IMAGE_MEAN, IMAGE_STD


def prepared(image: Image.Image, side: int) -> Tensor:
    """One view with CLIP's preprocessing: resize the shorter side to `side` (bicubic), centre crop, normalise."""
    scale = side / min(image.size)
    image = image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    return torch.from_numpy((pixels - np.array(IMAGE_MEAN, dtype=np.float32)) / np.array(IMAGE_STD, dtype=np.float32)).permute(2, 0, 1)


def views(data: bytes, side: int, n_crops: int, rng: np.random.Generator) -> Tensor:
    """The whole image and `n_crops` random squares with a side of 0.5 to 0.9 of its shorter side."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    parts = [prepared(image, side)]
    for _ in range(n_crops):
        length = int(rng.uniform(0.5, 0.9) * min(image.size))
        left, top = rng.integers(0, image.width - length + 1), rng.integers(0, image.height - length + 1)
        parts.append(prepared(image.crop((left, top, left + length, top + length)), side))
    return torch.stack(parts)


@torch.inference_mode()
def encode(files: Sequence[bytes], model: CLIPModel, side: int, n_crops: int) -> Tensor:
    """Features of all images, shape (images, 1 + n_crops, dim)."""
    rng, rows = np.random.default_rng(0), []
    for data in files:
        pixels = views(data, side, n_crops, rng).to(model.device)
        rows.append(torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1).cpu())
    return torch.stack(rows)
