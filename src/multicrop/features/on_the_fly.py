"""`bank=off`: the rows of a bank, encoded while they are read and kept nowhere, for data that no disk would hold."""

import time
from collections.abc import Iterator, Sequence

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from multicrop.data.base import LabelledImages
from multicrop.data.images import to_rgb
from multicrop.features.fill import group_size, view_loader
from multicrop.model import MultiCropCLIP, ViewDataset, image_views

GROUPS_PER_SHARD = 1 << 20  # any power of two: there are no shards to divide


class StreamedBank:
    """What an ImageBank answers, without one: `batches` encodes as it goes, `bank[i]` and `boxes(i)` open image i again."""

    reused = False
    openable = True

    def __init__(
        self, images: LabelledImages, module: MultiCropCLIP, *, n_views: int, num_workers: int, accelerator: str, cut: str = "worker"
    ) -> None:
        self.images, self.module, self.n_views = images, module, n_views
        self.num_workers, self.accelerator, self.cut = num_workers, accelerator, cut
        self.readable = torch.ones(len(images), dtype=torch.bool)
        self.positions = list(range(len(images)))
        self.seconds, self.encoded = 0.0, 0

    def __len__(self) -> int:
        return int(self.readable.sum())

    @property
    def manifest(self) -> dict[str, float]:
        """The rate of what was encoded so far."""
        return rate(self.encoded * self.n_views, self.seconds)

    def batches(self, order: Sequence[int]) -> "StreamedBatches":
        """(views, labels, indices) of the readable images in this order, a group of images a batch."""
        return StreamedBatches(self, order)

    @torch.inference_mode()
    def encoded_batches(self, order: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What `batches` goes through, once."""
        module = placed(self.module, self.accelerator)
        size = group_size(self.n_views, GROUPS_PER_SHARD, self.accelerator)
        dataset = ViewDataset(self.images.subset(order), module.sampler, module.encoder.spec, module.seed, size, cut=self.cut == "worker")
        started = time.perf_counter()
        for batch in view_loader(dataset, None, self.num_workers, self.accelerator):
            found = module.predict_step(move_data_to_device(batch, module.device), 0)["views"]
            kept = batch["readable"]
            indices = torch.tensor([order[i] for i in batch["index"].tolist()])
            self.readable[indices[~kept]] = False
            self.encoded += int(kept.sum())
            self.seconds += time.perf_counter() - started
            if kept.any():
                yield found[kept], torch.tensor([self.images.labels[i] for i in indices[kept].tolist()]), indices[kept]
            started = time.perf_counter()

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        with torch.inference_mode():
            pixels, boxes = (values.to(self.module.device) for values in self._pixels(index))
            return self.module.features(pixels, boxes[None])[0].cpu(), self.images.labels[index], index

    def boxes(self, index: int) -> Tensor:
        """The boxes of image `index` (views, 4), as an ImageBank's."""
        return self._pixels(index)[1]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All views (images, views, dim) and labels (images), in memory."""
        views, labels, _ = zip(*self.batches(range(len(self.images))), strict=True)
        return torch.cat(views), torch.cat(labels)

    def _pixels(self, index: int) -> tuple[Tensor, Tensor]:
        module = self.module
        return image_views(to_rgb(self.images.open(index)), self.images.ids[index], module.sampler, module.encoder.spec, module.seed)


class StreamedBatches:
    """An iterable of a StreamedBank's batches that knows its length, for Lightning's loops and progress bars."""

    def __init__(self, bank: StreamedBank, order: Sequence[int]) -> None:
        self.bank, self.order = bank, order

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return self.bank.encoded_batches(self.order)

    def __len__(self) -> int:
        size = group_size(self.bank.n_views, GROUPS_PER_SHARD, self.bank.accelerator)
        return -(-len(self.order) // size)


def placed(module: MultiCropCLIP, accelerator: str) -> MultiCropCLIP:
    """The module on the device that the trainer's accelerator names."""
    return module.to("cpu" if accelerator == "cpu" else "cuda")


def rate(views: int, seconds: float) -> dict[str, float]:
    """What stands for a manifest where features are not kept: the time spent so far, and the rate."""
    return {"seconds": seconds, "crops_per_second": views / seconds if seconds else 0.0}
