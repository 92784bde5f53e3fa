"""OnTheFlyBank (`bank=off`): features that are encoded while they are read and not stored, for data that no disk would hold."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from multicrop.crops.views import ViewGroup
from multicrop.data.base import LabelledImages
from multicrop.data.images import to_rgb
from multicrop.features.base import Batch, EncodeCost, FeatureBank, Row
from multicrop.features.identity import count_views
from multicrop.features.view_dataset import Cut, ViewCutter, ViewDataset, group_size, view_loader
from multicrop.model import MultiCropCLIP


class OnTheFlyBank(FeatureBank):
    """A bank without files: `batches` encodes on the way, `bank[row]` and `boxes(index)` open that image again.

    Every image has a row, readable or not: ``bank[row]`` and ``boxes`` raise ImageError for one that cannot be read, and ``batches``
    skips it.

    Args:
        images: The images.
        module: Encodes their views.
        num_workers: Processes that decode and cut; 0 for threads of this process.
        accelerator: ``"cpu"``, or ``"gpu"`` to encode on a GPU.
        cut: ``"worker"`` or ``"device"``: where crops are resampled.
    """

    reused = False
    can_reopen = True
    reorderable = True

    def __init__(
        self, images: LabelledImages, module: MultiCropCLIP, *, num_workers: int = 0, accelerator: str = "cpu", cut: str = "worker"
    ) -> None:
        self.images, self.module, self.n_views = images, module, count_views(module.sampler)
        self.num_workers, self.accelerator, self.cutter = num_workers, accelerator, ViewCutter.of(module, cut)
        self.group_size = group_size(self.n_views, accelerator)
        self._readable = torch.ones(len(images), dtype=torch.bool)
        self._seconds, self._encoded = 0.0, 0

    @property
    def readable(self) -> Tensor:
        """Which images could be read; true of those that have not been tried."""
        return self._readable

    @property
    def positions(self) -> list[int]:
        """The image index of each row, which is the row's own number."""
        return list(range(len(self.images)))

    @property
    def cost(self) -> EncodeCost:
        """What was spent on encoding so far."""
        return EncodeCost.of(self._encoded * self.n_views, self._seconds)

    def __getitem__(self, row: int) -> Row:
        return predicted(self.module, self.cutter.group([self._cut(row)]))[0], self.images.labels[row], row

    def boxes(self, index: int) -> Tensor:
        """The boxes of an image's views (views, 4); the image is opened for its size."""
        return self._cut(index)[1]

    def batches(self, order: Sequence[int] | None = None, *, batch_size: int = 1) -> "OnTheFlyBatches":
        """(views, labels, indices) of the readable images in this order, one group per batch whatever `batch_size`."""
        return OnTheFlyBatches(self, self.positions if order is None else order)

    def encoded(self, order: Sequence[int]) -> Iterator[Batch]:
        """Encode the images of these rows, group by group."""
        started = time.perf_counter()
        how = {"num_workers": self.num_workers, "accelerator": self.accelerator, "cut": self.cutter.cut}
        for batch in encoded_groups(self.images.subset(order), self.module, **how):
            views, readable = batch.views, batch.readable
            indices = torch.tensor([order[i] for i in batch.index.tolist()])
            self._readable[indices[~readable]] = False
            self._encoded += int(readable.sum())
            self._seconds += time.perf_counter() - started
            if readable.any():
                read = indices[readable]
                yield views[readable], torch.tensor([self.images.labels[i] for i in read.tolist()]), read
            started = time.perf_counter()

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All views and labels, encoded into memory."""
        return joined(self.batches())

    def _cut(self, index: int) -> Cut:
        return self.cutter.views(to_rgb(self.cutter.open(self.images, index)), self.images.ids[index])


class EncodedImages(NamedTuple):
    """A group of neighbouring images.

    Args:
        views: Unit-norm features, shape (images, views, dim); zeros for an image that cannot be read.
        boxes: Boxes of the views, shape (images, views, 4), in pixels (x1, top, x2, bottom).
        readable: Which images could be read, shape (images).
        index: Positions of the images, shape (images).
    """

    views: Tensor
    boxes: Tensor
    readable: Tensor
    index: Tensor


class OnTheFlyBatches:
    """The batches of an OnTheFlyBank, with a length for Lightning's loops and progress bars."""

    def __init__(self, bank: OnTheFlyBank, order: Sequence[int]) -> None:
        self.bank, self.order = bank, order

    def __iter__(self) -> Iterator[Batch]:
        return self.bank.encoded(self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.bank.group_size)


def encoded_groups(
    images: LabelledImages, module: MultiCropCLIP, *, num_workers: int = 0, accelerator: str = "cpu", cut: str = "worker"
) -> Iterator[EncodedImages]:
    """Encode images in their order, a group of neighbours at a time; nothing is stored.

    Args:
        images: The images; one that cannot be read has zeros for features and False for ``readable``.
        module: Encodes their views.
        num_workers: Processes that decode and cut; 0 for threads of this process.
        accelerator: ``"cpu"``, or ``"gpu"`` to encode on a GPU.
        cut: ``"worker"`` or ``"device"``: where crops are resampled.

    Yields:
        The groups.
    """
    dataset = ViewDataset(images, ViewCutter.of(module, cut), group_size(count_views(module.sampler), accelerator))
    module = on_device(module, accelerator)
    for group in view_loader(dataset, num_workers=num_workers, accelerator=accelerator):
        yield EncodedImages(predicted(module, group), group["boxes"], group["readable"], group["index"])


def on_device(module: MultiCropCLIP, accelerator: str) -> MultiCropCLIP:
    """The module on the device that the trainer's accelerator names."""
    return module.to("cpu" if accelerator == "cpu" else "cuda")


@torch.inference_mode()
def predicted(module: MultiCropCLIP, group: ViewGroup) -> Tensor:
    """The features of a group's views (images, views, dim), on the CPU."""
    return module.predict_step(move_data_to_device(group, module.device), 0)["views"]


def joined(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """The views and labels of all batches."""
    views, labels, _ = zip(*batches, strict=True)
    return torch.cat(views), torch.cat(labels)
