"""JoinedBank: a subset of a data set whose images lie in the banks of other subsets, such as the supports of other seeds and shots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from multicrop.data.base import LabelledImages
from multicrop.features.base import EncodeSettings
from multicrop.features.disk import Banks, DiskBank, Manifest, encoded, found, found_whole
from multicrop.features.engine import Engine, local
from multicrop.features.identity import BankIdentity, ViewRecipe, count_views, image_keys
from multicrop.features.places import BankFolder
from multicrop.features.shards import SHARD_IMAGES, ShardFolder
from multicrop.features.view_dataset import group_size

Places = dict[int, tuple[int, int]]  # per image, the number of its bank and its position among that bank's images


class JoinedBank(DiskBank):
    """The bank of images that several banks hold.

    Args:
        images: The images.
        banks: The banks; the costs of filling are those of the last one.
        places: Per image of `images`, the number of its bank and its position among that bank's images.
        reused: Whether all features were found, not encoded by this process.
    """

    def __init__(self, images: LabelledImages, banks: Sequence[DiskBank], places: Sequence[tuple[int, int]], *, reused: bool) -> None:
        self.images, self.banks, self.places, self.reused = images, banks, places, reused
        self.manifest, self.n_views = banks[-1].manifest, banks[-1].n_views
        self._readable = torch.stack([banks[number].readable[index] for number, index in places])
        self._positions: list[int] = self._readable.nonzero().squeeze(1).tolist()

    def subset(self, images: LabelledImages, rows: Sequence[int]) -> "JoinedBank":
        """See ``DiskBank.subset``."""
        return JoinedBank(images, self.banks, [self.places[row] for row in rows], reused=True)

    def _stored(self, name: str, index: int) -> Tensor:
        number, place = self.places[index]
        return self.banks[number]._stored(name, place)


def open_or_fill(
    images: LabelledImages,
    recipe: ViewRecipe,
    cache: Path | Banks,
    settings: EncodeSettings,
    *,
    shard_images: int | None = None,
    engine: Engine = local,
) -> DiskBank:
    """Open the bank of these images, after encoding what is missing of it.

    A subset of images whose whole set has a bank reads that one, and a bank of more nested crops answers for fewer. A killed run
    continues at its first missing shard; a shard that fails its checksum is encoded again, with a warning; processes that want the same
    bank share its shards.

    Another subset reads the images that banks of subsets hold, and encodes the rest. The features are those that a bank of its own would
    hold: rounding may depend on the number of views in a forward pass, so an image is read from a full group where its own bank would
    have it in one, the rest is encoded in full groups, for which some images are encoded again, and a last group that is not full is read
    only where another bank ends with the same one.

    Args:
        images: The images.
        recipe: What makes their views.
        cache: The place of all banks: a folder, or object storage.
        settings: Where and how to encode.
        shard_images: Images per shard of a new bank, a power of two; None for 256. A bank that was begun keeps its size.
        engine: What encodes the missing shards.

    Returns:
        The bank, verified.

    Raises:
        PermissionError: If `cache` cannot be written to.
        ValueError: If `shard_images` is not a power of two.
    """
    place, how = BankFolder(cache) if isinstance(cache, Path) else cache, {"shard_images": shard_images, "engine": engine}
    manifests = [] if images.parent is None else list(place.manifests(images.name))
    if bank := found_whole(images, recipe, place, settings.cut, manifests):
        return bank
    identity = recipe.identity(images, settings.cut)
    if bank := found(images, recipe, identity, place):
        return bank
    if images.parent is None:
        return encoded(images, recipe, identity, place, settings, **how)
    group = group_size(count_views(recipe.sampler), settings.accelerator, shard_size=shard_images or SHARD_IMAGES)
    banks, places = _elsewhere(images, recipe, identity, place, settings.accelerator, group, manifests)
    if not banks:
        return encoded(images, recipe, identity, place, settings, **how)
    if left := _rest(len(images), places, group):
        rest = images.subset(left)
        own = recipe.identity(rest, settings.cut)
        banks.append(found(rest, recipe, own, place) or encoded(rest, recipe, own, place, settings, **how))
        places |= {index: (len(banks) - 1, position) for position, index in enumerate(left)}
    return JoinedBank(images, banks, [places[index] for index in range(len(images))], reused=banks[-1].reused)


def _elsewhere(
    images: LabelledImages,
    recipe: ViewRecipe,
    identity: BankIdentity,
    place: Banks,
    accelerator: str,
    group: int,
    manifests: Sequence[Manifest],
) -> tuple[list[DiskBank], Places]:
    """The banks of other subsets that hold some of these images, and where in them."""
    banks, places = list[DiskBank](), Places()
    keys, n_views = image_keys(images), count_views(recipe.sampler)
    for folder, listed in _subsets(images.name, identity, n_views, place, manifests):
        if group_size(n_views, accelerator, shard_size=folder.size) != group:
            continue
        rows = {index: row for index, row in _held(keys, listed, group).items() if index not in places}
        if rows and (opened := folder.opened()) is not None:
            place.used(folder)
            places |= {index: (len(banks), position) for position, index in enumerate(rows)}
            held = images.subset(list(rows))
            banks.append(DiskBank(held, *opened, n_views=n_views, reused=True, rows=list(rows.values())))
    return banks, places


def _subsets(
    dataset: str, identity: BankIdentity, n_views: int, place: Banks, manifests: Sequence[Manifest]
) -> Iterator[tuple[ShardFolder, list[str]]]:
    """The finished banks of subsets that differ from an identity in their images alone, the largest first, and the keys of their images."""
    wanted = asdict(identity)
    for key, views, manifest in sorted(manifests, key=lambda one: (-one[2].get("images", 0), one[0])):
        same = views == n_views and {**manifest.get("identity", {}), "data": identity.data} == wanted
        if same and (listed := manifest.get("image_keys")):
            yield place.begun(dataset, key, views, len(listed)), listed


def _held(keys: Sequence[str], listed: Sequence[str], group: int) -> Mapping[int, int]:
    """Rows of a bank by the positions of the images that are read there: of full groups of both, and of the last group if it is equal."""
    ours, theirs = len(keys) - len(keys) % group, len(listed) - len(listed) % group
    row_of = {key: row for row, key in enumerate(listed[:theirs])}
    rows = {index: row_of[key] for index, key in enumerate(keys[:ours]) if key in row_of}
    last = keys[ours:] if keys[ours:] == listed[theirs:] else []
    return rows | {ours + step: theirs + step for step in range(len(last))}


def _rest(count: int, places: Places, group: int) -> list[int]:
    """The positions to encode: those without a place, filled up to full groups, and the last group at the end."""
    full = range(count - count % group)
    missing = [index for index in full if index not in places]
    again = [index for index in full if index in places][: -len(missing) % group]
    return missing + again + [index for index in range(full.stop, count) if index not in places]
