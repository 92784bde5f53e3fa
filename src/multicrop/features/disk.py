"""DiskBank: view features in files, opened where they are whole and encoded where they are not."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from multicrop.data.base import LabelledImages
from multicrop.features.base import Batch, EncodeCost, EncodeSettings, FeatureBank, Row
from multicrop.features.engine import Engine, local
from multicrop.features.identity import BankIdentity, ViewRecipe, count_views, is_nested
from multicrop.features.places import BankFolder
from multicrop.features.remote import RemoteBanks
from multicrop.features.shards import SHARD_IMAGES, ShardFolder

log = logging.getLogger(__name__)
Banks = BankFolder | RemoteBanks
Manifest = tuple[str, int, dict]  # key of a finished bank, its views per image, its manifest


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
        self.shard_size = len(shards[0]["readable"]) if shards else 0
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
        return self.shards[place // self.shard_size][name][place % self.shard_size, : self.n_views]


def encoded(
    images: LabelledImages,
    recipe: ViewRecipe,
    identity: BankIdentity,
    place: Banks,
    settings: EncodeSettings,
    *,
    shard_images: int | None,
    engine: Engine,
) -> DiskBank:
    """The bank of these images, after encoding the shards that are missing; see ``open_or_fill``."""
    folder = _new(images, recipe, identity, place, shard_images)
    while (opened := folder.opened()) is None:
        engine(images, recipe, identity, folder, settings)
    return DiskBank(images, *opened, n_views=count_views(recipe.sampler), reused=False)


def found_whole(images: LabelledImages, recipe: ViewRecipe, place: Banks, cut: str, manifests: Sequence[Manifest]) -> DiskBank | None:
    """These images in a finished and intact bank of the set that they are a subset of; all images of that set are hashed where any of the
    banks has as many.
    """
    if images.parent is None or not any(manifest.get("images") in (None, len(images.parent[0])) for _, _, manifest in manifests):
        return None
    whole, rows = images.parent
    bank = found(whole, recipe, recipe.identity(whole, cut), place)
    return None if bank is None else bank.subset(images, rows)


def found(images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, place: Banks) -> DiskBank | None:
    """A finished and intact bank of these images: this policy's own, or one of more nested crops."""
    for folder in _stored(images, recipe, identity, place):
        if (opened := folder.opened()) is not None:
            place.used(folder)
            return DiskBank(images, *opened, n_views=count_views(recipe.sampler), reused=True)
    return None


def filled(
    images: LabelledImages,
    recipe: ViewRecipe,
    cache: Path | Banks,
    settings: EncodeSettings,
    *,
    shard_images: int | None = None,
    engine: Engine = local,
) -> tuple[ShardFolder, bool]:
    """The bank of these images, complete and not opened, so that its shards can be read one by one.

    Args:
        images: The images; that they are a subset of others is not used.
        recipe: See ``open_or_fill``, as for the other arguments.
        cache: The place of all banks.
        settings: Where and how to encode.
        shard_images: Images per shard of a new bank.
        engine: What encodes.

    Returns:
        Its folder, and whether the bank was complete before. It may hold more views per image, of nested crops, than the policy draws.

    Raises:
        PermissionError, ValueError: As ``open_or_fill``.
    """
    place, identity = BankFolder(cache) if isinstance(cache, Path) else cache, recipe.identity(images, settings.cut)
    for folder in _stored(images, recipe, identity, place):
        if folder.manifest() is not None:
            place.used(folder)
            return folder, True
    folder = _new(images, recipe, identity, place, shard_images)
    while folder.manifest() is None:
        engine(images, recipe, identity, folder, settings)
    return folder, False


def _new(images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, place: Banks, shard_images: int | None) -> ShardFolder:
    """The folder of a bank to fill; raises ValueError for a size that is no power of two."""
    size = shard_images or SHARD_IMAGES
    if size & (size - 1):
        raise ValueError(f"trainer.shard_images is a power of two, such as {SHARD_IMAGES}, got {size}")
    folder = place.new(images.name, identity.key, count_views(recipe.sampler), len(images), size=size)
    if folder.size != size:
        message = "%s was begun with %d images per shard and keeps them; trainer.shard_images=%d is for new banks"
        log.warning(message, folder.path, folder.size, size)
    return folder


def _stored(images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, place: Banks) -> Iterator[ShardFolder]:
    """The finished banks of these images: this policy's own, and those of more nested crops."""
    n_views, nested = count_views(recipe.sampler), is_nested(recipe.sampler)
    for stored in place.finished(images.name, identity.key):
        if stored == n_views or (nested and stored > n_views):
            yield place.begun(images.name, identity.key, stored, len(images))
