"""Filling a bank: claim a shard, encode its images group by group, write it; the manifest comes last."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from multicrop.data.base import LabelledImages
from multicrop.features.identity import Recipe, count_views
from multicrop.features.shards import Claims, ShardFolder
from multicrop.model import MultiCropCLIP, ViewDataset

VIEWS_AT_ONCE = {"cpu": 68, "cuda": 1024}  # views of a group: on a CPU four images of 17, read side by side


class BankProgress(RichProgressBar):
    """The progress bar of encoding and of scoring, both counted in batches."""

    @property
    def predict_description(self) -> str:
        """What the bar says while views are encoded."""
        return "Encoding"

    @property
    def test_description(self) -> str:
        """What the bar says while views are scored."""
        return "Scoring"


def encoding_trainer(
    *, accelerator: str = "cpu", devices: int = 1, progress: bool = True, callbacks: Sequence[L.Callback] = ()
) -> L.Trainer:
    """A trainer that only predicts; with several devices, DDP processes that share the shards by claims, not by a sampler."""
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        callbacks=[*callbacks, *([BankProgress()] if progress else [])],
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def group_size(n_views: int, shard_size: int, accelerator: str) -> int:
    """Images a forward: a power of two that divides a shard, so that a feature does not depend on who encodes it, or after which kill."""
    wanted = VIEWS_AT_ONCE["cpu" if accelerator == "cpu" else "cuda"] // n_views
    size = 1
    while size * 2 <= wanted and shard_size % (size * 2) == 0:
        size *= 2
    return size


class ShardSampler(Sampler[int]):
    """The groups of the shards that this process can claim, shard after shard; each process starts elsewhere."""

    def __init__(self, folder: ShardFolder, claims: Claims, groups_per_shard: int, start: int) -> None:
        missing = folder.missing()
        turn = start % max(len(missing), 1)
        self.folder, self.claims, self.per_shard, self.shards = folder, claims, groups_per_shard, missing[turn:] + missing[:turn]

    def __iter__(self) -> Iterator[int]:
        for shard in self.shards:
            if self.claims.take(shard):
                rows, size = self.folder.rows(shard), self.folder.size // self.per_shard
                yield from range(rows.start // size, -(-rows.stop // size))

    def __len__(self) -> int:
        return sum(-(-len(self.folder.rows(shard)) * self.per_shard // self.folder.size) for shard in self.shards)


class ShardWriter(BasePredictionWriter):
    """Collects the groups of one shard and writes it once it is whole; one shard is all that it holds."""

    def __init__(self, folder: ShardFolder, claims: Claims) -> None:
        super().__init__("batch")
        self.folder, self.claims, self.written = folder, claims, 0
        self.groups: list[dict[str, Tensor]] = []

    def write_on_batch_end(self, trainer, module, prediction, batch_indices, batch, batch_idx, dataloader_idx) -> None:  # noqa: ANN001
        """Keep one group's features; a whole shard goes to disk."""
        self.groups.append(
            {
                "views": prediction["views"].half(),
                "boxes": prediction["boxes"].cpu(),
                "readable": prediction["readable"].cpu().to(torch.uint8),
            }
        )
        last = int(prediction["index"][-1])
        shard = last // self.folder.size
        if last == self.folder.rows(shard)[-1]:
            whole = {name: torch.cat([group[name] for group in self.groups]).contiguous() for name in self.groups[0]}
            self.groups = []
            self.folder.write(shard, whole)
            self.claims.release([shard])
            self.written += len(whole["readable"])


def fill(
    images: LabelledImages,
    module: MultiCropCLIP,
    recipe: Recipe,
    folder: ShardFolder,
    *,
    num_workers: int = 0,
    accelerator: str = "cpu",
    devices: int = 1,
    cut: str = "worker",
    progress: bool = True,
) -> None:
    """Encode what is missing of a bank, together with whatever other processes work on it, and write the manifest.

    A process that finds all missing shards claimed waits for them, and takes over those of one that died.
    """
    n_views, started, encoded = count_views(module.sampler), time.perf_counter(), 0
    size = group_size(n_views, folder.size, accelerator)
    dataset = ViewDataset(images, module.sampler, module.encoder.spec, recipe.seed, size, cut=cut == "worker")
    while missing := folder.missing():
        claims = Claims(folder)
        writer = ShardWriter(folder, claims)
        sampler = ShardSampler(folder, claims, folder.size // size, start=len(missing) * local_rank() // max(devices, 1))
        loader = view_loader(dataset, sampler, num_workers, accelerator)
        trainer = encoding_trainer(accelerator=accelerator, devices=devices, progress=progress, callbacks=[writer])
        try:
            trainer.predict(module, loader, return_predictions=False)
        finally:
            claims.release()
        encoded += writer.written
        for shard in folder.missing():
            claims.wait(shard)
    seconds = time.perf_counter() - started
    if folder.manifest() is None:
        facts = {"dataset": images.name, "model": module.encoder.name, "images": len(images), "views": n_views, "shard_images": folder.size}
        rate = encoded * n_views / seconds
        folder.finish({"recipe": asdict(recipe), **facts, "seconds": seconds, "crops_per_second": rate, "precision_on_disk": "fp16"})
    folder.tidy()


def view_loader(dataset: ViewDataset, sampler: Sampler[int] | None, num_workers: int, accelerator: str) -> DataLoader:
    """One group an item; workers are spawned, because a fork after torch operations hangs."""
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
        pin_memory=accelerator != "cpu",
    )


def local_rank() -> int:
    """The number of this process among those that one trainer started on this machine; 0 where it started none."""
    return int(os.environ.get("LOCAL_RANK", "0"))
