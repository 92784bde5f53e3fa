"""Images that the tests share, and what else worker processes read: a worker imports this file, so it imports little."""

import os

import torch
from PIL import Image
from torch.utils.data import Dataset

from multicrop.data.base import LabelledImages, content_hash


class _Pictures:
    def __call__(self, index: int) -> Image.Image:
        generator = torch.Generator().manual_seed(index)
        coarse = torch.randint(0, 256, (6, 8 + index % 3, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(coarse.numpy()).resize((120 + 7 * (index % 5), 96 + 5 * (index % 7)), Image.Resampling.BICUBIC)


def pictures(count: int, name: str = "pictures") -> LabelledImages:
    """Coloured noise of several sizes, labels 0 and 1."""
    ids = [f"{name}-{i}" for i in range(count)]
    return LabelledImages(name, ids, [i % 2 for i in range(count)], _Pictures(), content_hash(name, count))


class Processes(Dataset):
    """An item is the process that reads it, and its parent."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return os.getpid(), os.getppid()
