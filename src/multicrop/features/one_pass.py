"""OnePassBank (`dataset.streaming=true bank=off`): each image of a stream is decoded, encoded and scored once."""

import time
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.data.images import ImageError
from multicrop.features.base import Batch, EncodeCost, FeatureBank, Row
from multicrop.features.identity import count_views
from multicrop.features.on_the_fly import joined, on_device, predicted
from multicrop.features.view_dataset import Cut, ViewCutter, group_size, view_loader
from multicrop.model import MultiCropCLIP

ONCE = "a stream is read once, in the order in which its images come"
INDEXED = "pass dataset.streaming=false for images that can be read again"


class OnePassBank(FeatureBank):
    """A bank of a stream whose ids and labels are known only after they have been read.

    ``images``, ``readable`` and ``positions`` grow while the batches are read. ``bank[row]``, ``boxes`` and ``images.open`` raise
    ImageError.

    Args:
        stream: The images.
        module: Encodes their views.
        num_workers: Processes that decode and cut, each its own part of the stream; 0 for this process alone.
        accelerator: ``"cpu"``, or ``"gpu"`` to encode on a GPU.
        cut: ``"worker"`` or ``"device"``: where crops are resampled.
    """

    reused = False
    can_reopen = False
    reorderable = False

    def __init__(
        self, stream: StreamedImages, module: MultiCropCLIP, *, num_workers: int = 0, accelerator: str = "cpu", cut: str = "worker"
    ) -> None:
        self.stream, self.module, self.n_views = stream, module, count_views(module.sampler)
        self.num_workers, self.accelerator, self.cutter = num_workers, accelerator, ViewCutter.of(module, cut)
        self._ids: list[str] = []
        self._labels: list[int] = []
        self.images = LabelledImages(stream.name, self._ids, self._labels, _cannot_reopen, stream.fingerprint)
        self._read: list[bool] = []
        self._seconds, self._started = 0.0, False

    def __len__(self) -> int:
        return sum(self._read)

    @property
    def readable(self) -> Tensor:
        """Which of the images read so far could be decoded."""
        return torch.tensor(self._read, dtype=torch.bool)

    @property
    def positions(self) -> list[int]:
        """The index of each decoded image among those read so far."""
        return [index for index, readable in enumerate(self._read) if readable]

    @property
    def cost(self) -> EncodeCost:
        """What was spent on encoding so far."""
        return EncodeCost.of(len(self) * self.n_views, self._seconds)

    def __getitem__(self, row: int) -> Row:
        raise ImageError(f"row {row}: {ONCE}; {INDEXED}")

    def boxes(self, index: int) -> Tensor:
        """Raises ImageError: boxes depend on an image that cannot be opened again."""
        raise ImageError(f"boxes of image {index}: {ONCE}; {INDEXED}")

    def batches(self, order: Sequence[int] | None = None, *, batch_size: int = 1) -> "OnePassBatches":
        """(views, labels, indices) of the readable images, one group per batch whatever `batch_size`; raises ValueError for an order."""
        if order is not None:
            raise ValueError(f"{self.stream.name}: {ONCE}, got an order of {len(order)} images; {INDEXED}")
        return OnePassBatches(self)

    def mark_unreadable(self, indices: Sequence[int]) -> None:
        """Raises ValueError: no earlier process read this stream."""
        raise ValueError(f"{self.stream.name}: {ONCE}, so that {len(indices)} unreadable images of an earlier pass mean nothing; {INDEXED}")

    def encoded(self) -> Iterator[Batch]:
        """Encode the stream, group by group; raises ValueError the second time."""
        if self._started:
            raise ValueError(f"{self.stream.name}: {ONCE}, and this one has been read; {INDEXED}")
        self._started = True
        module = on_device(self.module, self.accelerator)
        groups = _Groups(self.stream, self.cutter, group_size(self.n_views, self.accelerator))
        started = time.perf_counter()
        for batch in view_loader(groups, num_workers=self.num_workers, accelerator=self.accelerator):
            views, readable, first = predicted(module, batch["group"]), batch["group"]["readable"], len(self._read)
            self._ids.extend(batch["ids"])
            self._labels.extend(batch["labels"])
            self._read.extend(readable.tolist())
            self._seconds += time.perf_counter() - started
            if readable.any():
                yield views[readable], torch.tensor(batch["labels"])[readable], torch.arange(first, len(self._read))[readable]
            started = time.perf_counter()

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All views and labels, encoded into memory; this is the one pass."""
        return joined(self.batches())


class OnePassBatches:
    """The batches of an OnePassBank, without a length, which is not known."""

    def __init__(self, bank: OnePassBank) -> None:
        self.bank = bank

    def __iter__(self) -> Iterator[Batch]:
        return self.bank.encoded()


class _Groups(IterableDataset):
    """Groups of neighbouring images of one worker's part of a stream, with their ids and labels."""

    def __init__(self, stream: StreamedImages, cutter: ViewCutter, size: int) -> None:
        self.stream, self.cutter, self.size = stream, cutter, size

    def __iter__(self) -> Iterator[dict]:
        rows: list[tuple[str, int, Cut]] = []
        for image_id, label, image in self.stream:
            rows.append((image_id, label, self.cutter.views(image, image_id)))
            if len(rows) == self.size:
                yield self._group(rows)
                rows = []
        if rows:
            yield self._group(rows)

    def _group(self, rows: list[tuple[str, int, Cut]]) -> dict:
        ids, labels, views = zip(*rows, strict=True)
        return {"group": self.cutter.group(views), "ids": list(ids), "labels": list(labels)}


def _cannot_reopen(index: int) -> Image.Image:
    raise ImageError(f"image {index}: {ONCE}; {INDEXED}")
