"""DiskBank: view features in files, opened where they are whole and encoded where they are not."""

import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from multicrop.data.base import LabelledImages
from multicrop.features.base import Batch, EncodeCost, EncodeSettings, FeatureBank, Row
from multicrop.features.engine import Engine, local
from multicrop.features.identity import BankIdentity, ViewRecipe, count_views, is_nested
from multicrop.features.manifest import KNOB, agreed_size, stored_size
from multicrop.features.shards import SHARD_IMAGES, ShardFolder
from multicrop.files import MANIFEST, make_folder, naming, read_facts

log = logging.getLogger(__name__)


class DiskBank(FeatureBank, Dataset[Row]):
    """A bank in memory-mapped shards.

    Args:
        images: The images, as many as the shards hold, or as `rows` names.
        shards: Tensors ``views``, ``boxes`` and ``readable`` of each shard.
        manifest: What was written when the bank was whole: its identity, sizes and cost.
        n_views: Views to read per image; fewer than are stored where crops are nested.
        reused: Whether the features were found, not encoded by this process.
        rows: The stored image of each of `images`, for a subset of what is stored; None for all.
    """

    can_reopen = True
    reorderable = True

    def __init__(
        self,
        images: LabelledImages,
        shards: Sequence[dict[str, Tensor]],
        manifest: dict,
        *,
        n_views: int,
        reused: bool,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.images, self.shards, self.manifest, self.n_views, self.reused, self.rows = images, shards, manifest, n_views, reused, rows
        stored = torch.cat([shard["readable"] for shard in shards]).bool() if shards else torch.zeros(0, dtype=torch.bool)
        self._readable = stored if rows is None else stored[list(rows)]
        self._positions: list[int] = self._readable.nonzero().squeeze(1).tolist()

    @property
    def readable(self) -> Tensor:
        """Which images could be read when the bank was filled."""
        return self._readable

    @property
    def positions(self) -> list[int]:
        """The image index of each row; unreadable images have no row."""
        return self._positions

    @property
    def cost(self) -> EncodeCost:
        """What it cost to fill the bank, from its manifest."""
        return EncodeCost(self.manifest["seconds"], self.manifest["crops_per_second"])

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, row: int) -> Row:
        index = self._positions[row]
        views = self._stored("views", index).float()
        return torch.nn.functional.normalize(views, dim=-1), self.images.labels[index], index

    def boxes(self, index: int) -> Tensor:
        """The boxes of an image's views (views, 4), in pixels; x1 > x2 where a crop is mirrored."""
        return self._stored("boxes", index)

    def batches(self, order: Sequence[int] | None = None, *, batch_size: int) -> Iterable[Batch]:
        """A DataLoader of these rows."""
        return DataLoader(self if order is None else Subset(self, order), batch_size=batch_size)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All views (images, views, dim) and labels (images)."""
        views, labels, _ = zip(*(self[row] for row in range(len(self))), strict=True)
        return torch.stack(views), torch.tensor(labels)

    def subset(self, images: LabelledImages, rows: Sequence[int]) -> "DiskBank":
        """The bank of a subset: `images` are the stored images `rows`, in this order."""
        return DiskBank(images, self.shards, self.manifest, n_views=self.n_views, reused=True, rows=rows)

    def _stored(self, name: str, index: int) -> Tensor:
        place = index if self.rows is None else self.rows[index]
        size = len(self.shards[0]["readable"])
        return self.shards[place // size][name][place % size, : self.n_views]


def open_or_fill(
    images: LabelledImages,
    recipe: ViewRecipe,
    cache: Path,
    settings: EncodeSettings,
    *,
    shard_images: int | None = None,
    engine: Engine = local,
) -> DiskBank:
    """Open the bank of these images, after encoding what is missing of it.

    A subset of images whose whole set has a bank reads that one, and a bank of more nested crops answers for fewer. A killed run
    continues at its first missing shard; a shard that fails its checksum is encoded again, with a warning; processes that want the same
    bank share its shards.

    Args:
        images: The images.
        recipe: What makes their views.
        cache: The folder of all banks.
        settings: Where and how to encode.
        shard_images: Images per shard of a new bank, a power of two; None for 256. A bank that was begun keeps its size.
        engine: What encodes the missing shards.

    Returns:
        The bank, whole and verified.

    Raises:
        PermissionError: If `cache` cannot be written to.
        ValueError: If `shard_images` is not a power of two.
    """
    size = shard_images or SHARD_IMAGES
    if size & (size - 1):
        raise ValueError(f"trainer.shard_images is a power of two, such as {SHARD_IMAGES}, got {size}")
    if images.parent is not None and _may_be_stored(images.parent[0], cache):
        whole, rows = images.parent
        if bank := _found(whole, recipe, recipe.identity(whole, settings.cut), cache):
            return bank.subset(images, rows)
    identity = recipe.identity(images, settings.cut)
    if bank := _found(images, recipe, identity, cache):
        return bank
    n_views = count_views(recipe.sampler)
    path = _top(images, identity, cache) / f"v{n_views}"
    make_folder(path, KNOB)
    if (begun := agreed_size(path, size)) != size:
        log.warning("%s was begun with %d images per shard and goes on so; trainer.shard_images=%d is for new banks", path, begun, size)
    folder = ShardFolder(path, identity.key, len(images), begun)
    while (opened := _opened(folder)) is None:
        engine(images, recipe, identity, folder, settings)
    shards, manifest = opened
    return DiskBank(images, shards, manifest, n_views=n_views, reused=False)


def _top(images: LabelledImages, identity: BankIdentity, cache: Path) -> Path:
    return cache / images.name.replace("/", "-") / identity.key


def _may_be_stored(images: LabelledImages, cache: Path) -> bool:
    """Whether some bank of this data set has as many images, so that it is worth hashing all of them for their identity."""
    manifests = (cache / images.name.replace("/", "-")).glob(f"*/v*/{MANIFEST}")
    return any((read_facts(path) or {}).get("images", len(images)) == len(images) for path in manifests)


def _found(images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, cache: Path) -> DiskBank | None:
    """A finished and intact bank of these images: this policy's own, or one of more nested crops."""
    n_views, nested = count_views(recipe.sampler), is_nested(recipe.sampler)
    for path in sorted(_top(images, identity, cache).glob(f"v*/{MANIFEST}"), key=lambda path: int(path.parent.name[1:])):
        stored = int(path.parent.name[1:])
        if stored == n_views or (nested and stored > n_views):
            size = stored_size(path.parent) or SHARD_IMAGES
            if (opened := _opened(ShardFolder(path.parent, identity.key, len(images), size))) is not None:
                with suppress(OSError):  # `multicrop bank prune` reads the time of the last use; a read-only cache keeps the old one
                    os.utime(path)
                shards, manifest = opened
                return DiskBank(images, shards, manifest, n_views=n_views, reused=True)
    return None


def _opened(folder: ShardFolder) -> tuple[list[dict[str, Tensor]], dict] | None:
    """Shards and manifest of a finished bank; one whose shards are damaged loses its manifest and those shards."""
    if (manifest := folder.manifest()) is None:
        return None
    if (shards := folder.check()) is None:
        with naming(folder.manifest_path, KNOB), FileLock(folder.path.with_suffix(".lock")):
            folder.manifest_path.unlink(missing_ok=True)
        return None
    return shards, manifest
