"""Encoding the shards of a bank: claim a shard, encode its images group by group, write it."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import Sampler

from multicrop.data.base import LabelledImages
from multicrop.features.base import EncodeSettings
from multicrop.features.callbacks import BankProgress, quiet_trainer
from multicrop.features.identity import count_views
from multicrop.features.shards import Claims, ShardFolder
from multicrop.features.stops import local_rank
from multicrop.features.view_dataset import ViewCutter, ViewDataset, group_size, view_loader
from multicrop.model import MultiCropCLIP


def encoding_trainer(
    *, accelerator: str = "cpu", devices: int = 1, progress: bool = True, callbacks: Sequence[L.Callback] = ()
) -> L.Trainer:
    """A trainer that only predicts; with several devices, DDP processes that share the shards by claims, not by a sampler."""
    return quiet_trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=[*callbacks, *([BankProgress()] if progress else [])],
        enable_progress_bar=progress,
    )


class ShardSampler(Sampler[int]):
    """The groups of the shards that this process can claim, shard after shard; each process starts at another shard."""

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
    """Collects the groups of one shard and writes it when it is whole; it holds one shard at most."""

    def __init__(self, folder: ShardFolder, claims: Claims) -> None:
        super().__init__("batch")
        self.folder, self.claims, self.written = folder, claims, 0
        self.groups: list[dict[str, Tensor]] = []

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hold one group's features; write the shard when it is whole."""
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


def encode_missing(images: LabelledImages, module: MultiCropCLIP, folder: ShardFolder, settings: EncodeSettings) -> int:
    """Encode the missing shards that this process can claim, and wait for the others, of which some may still be missing then.

    Returns:
        The number of images encoded here.
    """
    claims, accelerator = Claims(folder), settings.accelerator
    writer = ShardWriter(folder, claims)
    size = group_size(count_views(module.sampler), accelerator, shard_size=folder.size)
    dataset = ViewDataset(images, ViewCutter.of(module, settings.cut), size)
    start = len(folder.missing()) * local_rank() // max(settings.devices, 1)
    sampler = ShardSampler(folder, claims, folder.size // size, start=start)
    loader = view_loader(dataset, num_workers=settings.num_workers, accelerator=accelerator, sampler=sampler)
    trainer = encoding_trainer(accelerator=accelerator, devices=settings.devices, progress=settings.progress, callbacks=[writer])
    try:
        trainer.predict(module, loader, return_predictions=False)
    finally:
        claims.release()
    for shard in folder.missing():
        claims.wait(shard)
    return writer.written
