"""Random features with the structure that pruning needs to handle: classes in groups, shared attributes, noisy crops of one class."""

import torch
from torch.nn.functional import normalize

from multicrop.text import TextBank

DIM = 512  # CLIP's


def clustered(
    images: int, classes: int, n_crops: int, descriptions: int, *, strength: float = 0.25, seed: int = 0
) -> tuple[torch.Tensor, TextBank]:
    """Views (images, 1 + n_crops, 512) and texts (classes, 1 + descriptions, 512), unit norm; cosines within about 0.05 of their mean.

    A group has ten classes; attributes are drawn from 200 that all classes share; all features are in one cone. A crop is a sum of its
    class and one of its attributes, each weighted up to `strength`, one attribute of any class, and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = lambda *shape: torch.randn(*shape, DIM, generator=generator) / DIM**0.5  # noqa: E731
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    cone, attributes = noise(), noise(200)
    centres = noise(classes // 10 + 1)[torch.arange(classes) // 10] + noise(classes)
    described = attributes[draw(200, classes, descriptions)]
    text = torch.cat([centres[:, None], 0.7 * centres[:, None] + described + 0.5 * noise(classes, descriptions)], 1) + cone
    label = torch.arange(images) % classes
    shown = described[label[:, None], draw(descriptions, images, n_crops)]
    amount = lambda: strength * torch.rand(images, n_crops, 1, generator=generator)  # noqa: E731
    crops = amount() * centres[label][:, None] + amount() * shown + 0.4 * attributes[draw(200, images, n_crops)]
    crops = crops + 1.2 * noise(images, n_crops) + 0.9 * cone
    whole = 0.6 * centres[label] + 0.8 * noise(images) + 0.9 * cone
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    names = [[f"class {c}"] * (descriptions + 1) for c in range(classes)]
    return normalize(torch.cat([whole[:, None], crops], 1), dim=-1), TextBank(normalize(text, dim=-1), mask, names)
