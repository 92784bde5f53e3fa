"""Engines work on the shards of a bank, encoding or scoring: `LocalEngine` in this process, `RayEngine` (ray_engine.py) on a cluster."""

import time
from collections import Counter
from dataclasses import asdict
from typing import Protocol, runtime_checkable

from multicrop.data.base import LabelledImages
from multicrop.features.base import EncodeCost, EncodeSettings
from multicrop.features.fill_line import FillLine, Shards
from multicrop.features.identity import BankIdentity, ViewRecipe, count_views, image_keys
from multicrop.features.shards import ShardFolder
from multicrop.features.stops import loop
from multicrop.files import redacted


@runtime_checkable
class ShardWorker(Protocol):
    """Works on shards, one at a time; a copy of it may do so in another process."""

    def load(self) -> None:
        """Prepare in the process that works."""

    def encode(self, shard: int) -> int:
        """Work on one shard, and return the number of its images."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Encodes the missing shards of a bank and writes its manifest; `needs_disk` says that it can serve no run that stores no features."""

    needs_disk: bool

    def __call__(
        self, images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, folder: ShardFolder, settings: EncodeSettings
    ) -> None:
        """Encode the missing shards of a bank and write the manifest.

        Args:
            images: The images.
            recipe: What makes their views.
            identity: The identity of the bank.
            folder: The folder of the bank.
            settings: Where and how to encode.
        """

    def each(self, worker: ShardWorker, folder: Shards, *, views: int, progress: bool, accelerator: str | None = None) -> None:
        """Work on the missing shards of a folder.

        Args:
            worker: What works on a shard and writes its result.
            folder: The results.
            views: Views per image.
            progress: Whether to show progress.
            accelerator: Where the worker encodes: ``"cpu"`` or ``"gpu"``; None if it encodes nothing.
        """


class LocalEngine:
    """Encode in this process, together with the other processes that work on the bank.

    A process that finds every missing shard claimed waits for them, and encodes those of a process that died.
    """

    needs_disk = False

    def __call__(
        self, images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, folder: ShardFolder, settings: EncodeSettings
    ) -> None:
        """See ``Engine``."""
        # Lightning and torchvision: seconds of imports, which reading an existing bank does not need
        from multicrop.features.fill import encode_missing
        from multicrop.model import MultiCropCLIP

        module = MultiCropCLIP(recipe.encoder.load(), recipe.sampler, seed=recipe.seed)
        started, encoded = time.perf_counter(), 0
        while folder.missing():
            encoded += encode_missing(images, module, folder, settings)
        seal(images, recipe, identity, folder, EncodeCost.of(encoded * count_views(recipe.sampler), time.perf_counter() - started))

    def each(self, worker: ShardWorker, folder: Shards, *, views: int, progress: bool, accelerator: str | None = None) -> None:
        """See ``Engine``."""
        worker.load()
        with FillLine(folder, views, progress, verb="scoring") as line, loop() as end_batch:
            line.started, line.nodes = time.monotonic(), Counter(["this machine"])
            for shard in folder.missing():
                line.images += worker.encode(shard)
                line.done += 1
                line.tell()
                end_batch()


local = LocalEngine()
LISTED = 50_000  # the images of a larger subset are not listed in its manifest, and other subsets do not read them there


def seal(images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, folder: ShardFolder, cost: EncodeCost) -> None:
    """Write the manifest of a bank whose shards are all there, unless another process has, and remove the lock files."""
    if folder.manifest() is None:
        facts = {"dataset": images.name, "model": recipe.encoder.facts.name, "views": count_views(recipe.sampler)}
        facts |= {"identity": asdict(identity), **asdict(cost), "precision_on_disk": "fp16"}
        facts |= {"image_keys": image_keys(images)} if images.parent is not None and len(images) <= LISTED else {}
        folder.finish(redacted(facts))
    folder.tidy()
