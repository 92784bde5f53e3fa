"""Labelled images as groups of views, decoded and cut in threads or worker processes, ready for the encoder."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from multicrop.crops import CropPolicy, as_policy, boxes_of
from multicrop.crops.checked import check_policy
from multicrop.crops.pixels import PixelSpec, separate_views
from multicrop.crops.views import ViewGroup, image_boxes, resampled_boxes, sufficient_side
from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError, full_size, reduced_decoding, reduction_of, shared_pixels, to_tensor
from multicrop.encoder.imported import FeatureTable
from multicrop.files import retrying

if TYPE_CHECKING:
    from multicrop.model import MultiCropCLIP  # loads Lightning, three seconds of each worker's start

VIEWS_AT_ONCE = {"cpu": 68, "cuda": 1024}  # views of a group: on a CPU four images of 17, read side by side
Cut = tuple[list[Tensor], Float[Tensor, "views 4"]]  # pictures (or imported features) and boxes of one image; none where it cannot be read


@dataclass(frozen=True)
class ViewCutter:
    """Cuts decoded images into views, or with `cut="device"` draws their boxes and leaves the cutting to the device.

    With `cut="scaled"` it opens JPEG files at the smallest scale at which each view is at least twice as large as the model reads it. Boxes
    are then drawn on the pixels of that scale, and returned in those of the file. The boxes of the first image that it cuts are checked.
    """

    sampler: CropPolicy
    spec: PixelSpec
    seed: int
    cut: str = "worker"
    table: FeatureTable | None = None  # of an encoder that runs elsewhere
    checked: list[str] = field(default_factory=list, repr=False, compare=False)  # the image whose boxes were checked

    @classmethod
    def of(cls, module: "MultiCropCLIP", cut: str) -> "ViewCutter":
        """The cutter of the views that a module encodes."""
        return cls(module.sampler, module.encoder.spec, module.seed, cut, getattr(module.encoder, "table", None))

    def open(self, images: LabelledImages, index: int) -> Image.Image:
        """One image, as large as its views need it."""
        with reduced_decoding(sufficient_side(self.sampler, self.spec) if self.cut == "scaled" else None):
            return retrying(lambda: images.open(index), images.ids[index])

    def views(self, image: Image.Image | None, image_id: str) -> Cut:
        """The views of one RGB image, or of None, an image that cannot be read."""
        if image is None:
            return [], torch.zeros_like(boxes_of(self.sampler, 8, 8, "", 0))
        pixels = to_tensor(image) if self.cut == "device" else shared_pixels(image)
        if not self.checked:
            check_policy(self.sampler, pixels, image_id, self.seed)
            self.checked.append(image_id)
        drawn = image_boxes(pixels, image_id, self.sampler, self.seed)
        boxes = torch.minimum(drawn * reduction_of(image), torch.tensor(full_size(image) * 2, dtype=torch.float32))
        if self.table is not None:
            return [self.table.views(image_id, boxes)], boxes
        return ([pixels] if self.cut == "device" else separate_views(pixels, resampled_boxes(drawn, self.sampler), self.spec)), boxes

    def group(self, rows: Sequence[Cut]) -> ViewGroup:
        """Several images as one batch of `MultiCropCLIP.predict_step`."""
        pictures = [picture for own, _ in rows for picture in own]
        none = torch.zeros(0, 3, self.spec.side, self.spec.side, dtype=torch.uint8)
        facts: ViewGroup = {
            "pixels": pictures if self.cut == "device" else torch.stack(pictures) if pictures else none,
            "boxes": torch.stack([boxes for _, boxes in rows]),
            "readable": torch.tensor([bool(own) for own, _ in rows]),
        }
        if self.table is None or not pictures:
            return facts
        return {**facts, "pixels": none, "vectors": torch.stack(pictures)}


class ViewDataset(Dataset[ViewGroup]):
    """The views of labelled images; an item is a group of neighbouring images.

    Args:
        images: The images.
        cutter: Cuts their views.
        group_size: Images per item.
    """

    def __init__(self, images: LabelledImages, cutter: ViewCutter, group_size: int) -> None:
        self.images, self.cutter, self.group_size = replace(images, parent=None), cutter, group_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.group_size)

    def __getitem__(self, group: int) -> ViewGroup:
        indices = range(group * self.group_size, min((group + 1) * self.group_size, len(self.images)))
        rows = list(_readers(self.threads).map(self._views, indices))
        return {**self.cutter.group(rows), "index": torch.tensor(indices)}

    @property
    def threads(self) -> int:
        """Images read at once: torch's threads; one where a tower looks at the images first, which is not safe in threads."""
        return 1 if as_policy(self.cutter.sampler).looks_at == "attention" else torch.get_num_threads()

    def _views(self, index: int) -> Cut:
        try:
            image = self.cutter.open(self.images, index)
        except ImageError:
            image = None
        return self.cutter.views(image, self.images.ids[index])


@cache
def _readers(threads: int) -> ThreadPoolExecutor:
    """Threads that read images, made once: new ones per group would cost what they save, in fresh memory."""
    return ThreadPoolExecutor(threads, thread_name_prefix="views")


def group_size(n_views: int, accelerator: str, *, shard_size: int | None = None) -> int:
    """Images per forward pass: a power of two that divides a shard.

    The groups are then fixed by an image's place in the data set, and features do not depend on the process that encodes them, nor on
    where an interrupted one continues.
    """
    at_once = VIEWS_AT_ONCE["cpu" if accelerator == "cpu" else "cuda"] // n_views
    size = 1
    while size * 2 <= at_once and (shard_size is None or shard_size % (size * 2) == 0):
        size *= 2
    return size


def _worker_context() -> BaseContext:
    """Workers are forked from a server that has imported this module and computed nothing, so that only the first loader waits for imports.

    A fork of this process hangs after torch operations, and each spawned worker imports for seconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def view_loader(
    dataset: Dataset | IterableDataset, *, num_workers: int, accelerator: str, sampler: Sampler[int] | None = None
) -> DataLoader:
    """One group per item."""
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=_worker_context() if num_workers else None,
        pin_memory=accelerator != "cpu",
    )
