"""ImageBank: the view features of one split as a data set, opened where it is whole and filled where it is not."""

import os
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset

from multicrop.crops import CropSampler
from multicrop.data.base import LabelledImages
from multicrop.encoder import Encoder, sighted
from multicrop.features.fill import fill
from multicrop.features.identity import Recipe, count_views, recipe_of
from multicrop.features.shards import SHARD_IMAGES, ShardFolder, read_manifest
from multicrop.files import make_folder
from multicrop.model import MultiCropCLIP


class ImageBank(Dataset):
    """View features of one split: item i is (views, label, i), the views unit-norm float32 (views, dim).

    Shards stay memory-mapped. `n_views` may be smaller than what is stored: crops are nested.
    """

    openable = True  # its images can be opened again, for pictures

    def __init__(self, images: LabelledImages, shards: list[dict[str, Tensor]], manifest: dict, n_views: int, reused: bool) -> None:
        self.images, self.shards, self.manifest, self.n_views, self.reused = images, shards, manifest, n_views, reused
        self.readable = torch.cat([shard["readable"] for shard in shards]).bool() if shards else torch.zeros(0, dtype=torch.bool)
        self.positions = self.readable.nonzero().squeeze(1).tolist()

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        index = self.positions[position]
        views = self._row("views", index).float()
        return torch.nn.functional.normalize(views, dim=-1), self.images.labels[index], index

    def boxes(self, index: int) -> Tensor:
        """The boxes of image `index` (views, 4), xyxy pixels; x1 > x2 where a crop is mirrored."""
        return self._row("boxes", index)

    def _row(self, name: str, index: int) -> Tensor:
        size = len(self.shards[0]["readable"])
        return self.shards[index // size][name][index % size, : self.n_views]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All views (images, views, dim) and labels (images)."""
        views, labels, _ = zip(*(self[i] for i in range(len(self))), strict=True)
        return torch.stack(views), torch.tensor(labels)


class SubsetBank(ImageBank):
    """The rows of a larger bank that belong to a subset of its images, in the subset's order."""

    def __init__(self, images: LabelledImages, whole: ImageBank, rows: list[int]) -> None:
        self.images, self.whole, self.rows, self.manifest = images, whole, rows, whole.manifest
        self.n_views, self.reused, self.readable = whole.n_views, True, whole.readable[rows]
        self.positions = self.readable.nonzero().squeeze(1).tolist()

    def _row(self, name: str, index: int) -> Tensor:
        return self.whole._row(name, self.rows[index])


def image_bank(
    images: LabelledImages,
    sampler: CropSampler,
    encoder: Encoder,
    *,
    seed: int,
    cache: Path,
    num_workers: int = 0,
    accelerator: str = "cpu",
    devices: int = 1,
    cut: str = "worker",
    shard_images: int | None = None,
    progress: bool = True,
) -> ImageBank:
    """The bank of these images, read where one is whole and encoded where not.

    A subset of images whose whole set has a bank reads that one. A killed run continues at its first missing shard; a shard that fails
    its checksum is encoded again, with a warning; processes that want the same bank share its shards. Raises PermissionError with
    advice when `cache` cannot be written, and ValueError unless `shard_images` is a power of two.
    """
    size = shard_images or SHARD_IMAGES
    if size & (size - 1):
        raise ValueError(f"trainer.shard_images is a power of two, such as {SHARD_IMAGES}, got {size}")
    sampler = sighted(sampler, encoder)
    if images.parent is not None:
        whole, rows = images.parent
        if bank := _whole_bank(whole, sampler, recipe_of(whole, sampler, encoder, seed, cut), cache):
            return SubsetBank(images, bank, rows)
    recipe, n_views = recipe_of(images, sampler, encoder, seed, cut), count_views(sampler)
    if bank := _whole_bank(images, sampler, recipe, cache):
        return bank
    folder = ShardFolder(_top(images, recipe.key, cache) / f"v{n_views}", recipe.key, len(images), size)
    make_folder(folder.path, "paths.cache")
    module = MultiCropCLIP(encoder, sampler, seed=seed)
    while (shards := _checked(folder)) is None:
        where = {"num_workers": num_workers, "accelerator": accelerator, "devices": devices}
        fill(images, module, recipe, folder, **where, cut=cut, progress=progress)
    return ImageBank(images, shards, folder.manifest(), n_views, reused=False)


def _top(images: LabelledImages, key: str, cache: Path) -> Path:
    return cache / images.name.replace("/", "-") / key


def _whole_bank(images: LabelledImages, sampler: CropSampler, recipe: Recipe, cache: Path) -> ImageBank | None:
    """A finished and intact bank of these images: this policy's own, or one of more nested crops."""
    n_views = count_views(sampler)
    nested = "n_crops" in getattr(sampler, "keywords", {})
    for path in sorted(_top(images, recipe.key, cache).glob("v*/manifest.json"), key=lambda path: int(path.parent.name[1:])):
        stored = int(path.parent.name[1:])
        if stored == n_views or (nested and stored > n_views):
            manifest = read_manifest(path)
            size = manifest["shard_images"] if manifest else SHARD_IMAGES
            if manifest and (shards := _checked(ShardFolder(path.parent, recipe.key, len(images), size))) is not None:
                with suppress(OSError):  # `multicrop bank prune` reads the time of the last use; a read-only cache keeps the old one
                    os.utime(path)
                return ImageBank(images, shards, manifest, n_views, reused=True)
    return None


def _checked(folder: ShardFolder) -> list[dict[str, Tensor]] | None:
    """The shards of a finished bank; one whose shards are damaged loses its manifest and those shards."""
    if folder.manifest() is None:
        return None
    if (shards := folder.check()) is None:
        with FileLock(folder.path.with_suffix(".lock")):
            folder.manifest_path.unlink(missing_ok=True)
    return shards
