"""Streams without an index (`dataset.streaming=true bank=off`): every image is decoded, encoded and scored in passing, once."""

import time
from collections.abc import Iterator

import torch
from lightning.fabric.utilities import move_data_to_device
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from multicrop.crops import boxes_of
from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.data.images import ImageError
from multicrop.features.fill import group_size
from multicrop.features.on_the_fly import GROUPS_PER_SHARD, placed, rate
from multicrop.model import MultiCropCLIP, image_views


class PassingBank:
    """What a StreamedBank answers, for data whose ids and labels are known only once they have passed; it cannot be read again."""

    reused = False
    openable = False

    def __init__(self, stream: StreamedImages, module: MultiCropCLIP, *, n_views: int, num_workers: int, accelerator: str) -> None:
        self.stream, self.module, self.n_views = stream, module, n_views
        self.num_workers, self.accelerator = num_workers, accelerator
        self.images = LabelledImages(stream.name, [], [], _gone, stream.fingerprint)
        self.seen: list[bool] = []
        self.seconds = 0.0

    def __len__(self) -> int:
        return sum(self.seen)

    @property
    def readable(self) -> Tensor:
        """Which of the images that have passed could be read (images)."""
        return torch.tensor(self.seen, dtype=torch.bool)

    @property
    def manifest(self) -> dict[str, float]:
        """The rate of what was encoded so far."""
        return rate(len(self) * self.n_views, self.seconds)

    def batches(self) -> "PassingBatches":
        """(views, labels, indices) of the readable images, a group of images a batch; the index counts what has passed."""
        return PassingBatches(self)

    def encoded_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What `batches` goes through, once."""
        module = placed(self.module, self.accelerator)
        groups = _Groups(self.stream, module, group_size(self.n_views, GROUPS_PER_SHARD, self.accelerator))
        context = "spawn" if self.num_workers else None
        started = time.perf_counter()
        for batch in DataLoader(groups, batch_size=None, num_workers=self.num_workers, multiprocessing_context=context):
            with torch.inference_mode():
                views = module.predict_step(move_data_to_device(batch["views"], module.device), 0)["views"]
            first, kept = len(self.seen), batch["views"]["readable"]
            self.images.ids.extend(batch["ids"])
            self.images.labels.extend(batch["labels"])
            self.seen.extend(kept.tolist())
            self.seconds += time.perf_counter() - started
            if kept.any():
                yield views[kept], torch.tensor(batch["labels"])[kept], torch.arange(first, len(self.seen))[kept]
            started = time.perf_counter()


class PassingBatches:
    """An iterable of a PassingBank's batches without a length, which nobody knows."""

    def __init__(self, bank: PassingBank) -> None:
        self.bank = bank

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return self.bank.encoded_batches()


class _Groups(IterableDataset):
    """Groups of neighbouring images of one worker's part of a stream: their views as a ViewDataset's item, with ids and labels."""

    def __init__(self, stream: StreamedImages, module: MultiCropCLIP, size: int) -> None:
        self.stream, self.sampler, self.spec, self.seed, self.size = stream, module.sampler, module.encoder.spec, module.seed, size

    def __iter__(self) -> Iterator[dict]:
        rows: list[tuple[str, int, Image.Image | None]] = []
        for row in self.stream:
            rows.append(row)
            if len(rows) == self.size:
                yield self._group(rows)
                rows = []
        if rows:
            yield self._group(rows)

    def _group(self, rows: list[tuple[str, int, Image.Image | None]]) -> dict:
        none = torch.zeros(0, 3, self.spec.side, self.spec.side, dtype=torch.uint8), torch.zeros_like(boxes_of(self.sampler, 8, 8, "", 0))
        made = [image_views(image, name, self.sampler, self.spec, self.seed) if image else none for name, _, image in rows]
        views = {
            "pixels": torch.cat([pixels for pixels, _ in made]),
            "boxes": torch.stack([boxes for _, boxes in made]),
            "readable": torch.tensor([image is not None for _, _, image in rows]),
        }
        return {"views": views, "ids": [name for name, _, _ in rows], "labels": [label for _, label, _ in rows]}


def _gone(index: int) -> Image.Image:
    raise ImageError(f"image {index} of a stream has passed and cannot be opened again; pass dataset.streaming=false for pictures")
