"""MultiCropCLIP: the LightningModule that joins a dual encoder, a crop sampler and an aggregator."""

import logging
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import lightning as L
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from multicrop.aggregators import Aggregator
from multicrop.crops import CropSampler, at_image, boxes_of, looks_at
from multicrop.crops.pixels import PixelSpec, separate_views, shares_of_view, view_pixels
from multicrop.crops.resampling import device_view_pixels
from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError, shared_pixels, to_rgb, to_tensor
from multicrop.encoder import Encoder, sighted
from multicrop.text import TextBank

log = logging.getLogger(__name__)


class MultiCropCLIP(L.LightningModule):
    """CLIP that looks at crops: `forward` gives class logits of images, `predict_step` the view features that fill a bank.

    Images are encoded in groups that are fixed by their place in the data set, never by workers, ranks or a resume.
    """

    def __init__(
        self,
        encoder: Encoder,
        sampler: CropSampler,
        *,
        text: TextBank | None = None,
        aggregator: Aggregator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.sampler, self.text, self.aggregator, self.seed = encoder, sighted(sampler, encoder), text, aggregator, seed
        self.views_at_once = sys.maxsize

    def forward(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch classes"]:
        """Class logits of PIL images; raises ValueError when the module was built without text or aggregator."""
        if self.text is None or self.aggregator is None:
            raise ValueError("class logits need MultiCropCLIP(encoder, sampler, text=..., aggregator=...)")
        return self.aggregator(self.views(images), self.text, self.encoder.logit_scale)

    @torch.inference_mode()
    def views(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch views dim"]:
        """Unit-norm features of the views of each image; crops are keyed by the image's position in the sequence."""
        rows = [image_views(to_rgb(image), str(index), self.sampler, self.encoder.spec, self.seed) for index, image in enumerate(images)]
        return torch.cat([self.features(pixels.to(self.device), boxes[None].to(self.device)) for pixels, boxes in rows])

    def predict_step(self, batch: dict[str, Tensor | list[Tensor]], batch_idx: int) -> dict[str, Tensor | list[Tensor]]:
        """Adds the view features of a group of images to its batch; an unreadable image keeps zeros."""
        boxes, readable, pixels = batch["boxes"], batch["readable"], batch["pixels"]
        features = torch.zeros(*boxes.shape[:2], self.encoder.dim)
        if readable.any():
            if isinstance(pixels, list):
                pixels = torch.cat([self.cut(image, own) for image, own in zip(pixels, boxes[readable], strict=True)])
            features[readable.cpu()] = self.features(pixels, boxes[readable]).cpu()
        return batch | {"views": features}

    def cut(self, image: UInt8[Tensor, "3 height width"], boxes: Float[Tensor, "views 4"]) -> UInt8[Tensor, "pictures 3 side side"]:
        """The views of a decoded image, resampled on its device."""
        return device_view_pixels(image, wanted(boxes, self.sampler), self.encoder.spec)

    def features(
        self, pixels: UInt8[Tensor, "pictures 3 side side"], boxes: Float[Tensor, "images views 4"]
    ) -> Float[Tensor, "images views dim"]:
        """Features of the views of images, from the pixels and boxes that `image_views` made of each."""
        if looks_at(self.sampler) == "tokens":
            return self.encoder.encode_feature_crops(pixels, shares_of_view(boxes, self.encoder.spec))
        return self.encode(pixels).unflatten(0, boxes.shape[:2])

    def encode(self, pixels: UInt8[Tensor, "views 3 side side"]) -> Float[Tensor, "views dim"]:
        """Features of views, in parts where they do not fit into memory at once: the part is halved until it does."""
        views = len(pixels)
        best = math.ceil(views / self.encoder.views_in_cache) if pixels.device.type == "cpu" else 1
        while True:
            parts = max(1, best, math.ceil(views / self.views_at_once))
            try:
                return torch.cat([self.encoder.encode_images(part) for part in pixels.tensor_split(parts)])
            except RuntimeError as error:
                largest = math.ceil(views / parts)
                if not _out_of_memory(error) or largest == 1:
                    raise
                self.views_at_once = largest // 2
                log.warning(f"{largest} views do not fit into memory at once; going on with {self.views_at_once}")


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def image_views(image: Image.Image, image_id: str, sampler: CropSampler, spec: PixelSpec, seed: int) -> tuple[Tensor, Tensor]:
    """Pixels (views,3,side,side) and boxes (views,4) of one RGB image; only the global view's pixels where crops are cut from tokens.

    Raises ValueError for a sampler that wants to look at the image and was given no eyes (multicrop.encoder.sighted).
    """
    pixels = shared_pixels(image)
    boxes = image_boxes(pixels, image_id, sampler, seed)
    return view_pixels(pixels, wanted(boxes, sampler), spec), boxes


def image_boxes(pixels: UInt8[Tensor, "channels height width"], image_id: str, sampler: CropSampler, seed: int) -> Float[Tensor, "views 4"]:
    """The boxes of the views of one image."""
    return boxes_of(at_image(sampler, pixels[:3]), *pixels.shape[1:], image_id, seed)


def wanted(boxes: Float[Tensor, "views 4"], sampler: CropSampler) -> Float[Tensor, "pictures 4"]:
    """The boxes whose pixels are resampled: all, or the global view alone where crops are cut from its tokens."""
    return boxes[:1] if looks_at(sampler) == "tokens" else boxes


class ViewDataset(Dataset):
    """The views of labelled images, `group_size` neighbouring images an item; unreadable ones have no pixels and `readable` false.

    An item holds pixels (readable images * views,3,side,side), boxes (images,views,4), readable (images) and index (images). With `cut`
    false, pixels are the decoded images instead, to be cut on the device.
    """

    def __init__(self, images: LabelledImages, sampler: CropSampler, spec: PixelSpec, seed: int, group_size: int, cut: bool = True) -> None:
        self.images, self.sampler, self.spec, self.seed, self.group_size = replace(images, parent=None), sampler, spec, seed, group_size
        self.cut = cut

    def __len__(self) -> int:
        return -(-len(self.images) // self.group_size)

    def __getitem__(self, group: int) -> dict[str, Tensor | list[Tensor]]:
        indices = range(group * self.group_size, min((group + 1) * self.group_size, len(self.images)))
        rows = list(_readers(self.threads).map(self._pictures, indices))
        pictures = [picture for own, _ in rows for picture in own]
        none = torch.zeros(0, 3, self.spec.side, self.spec.side, dtype=torch.uint8)
        return {
            "pixels": (torch.stack(pictures) if pictures else none) if self.cut else pictures,
            "boxes": torch.stack([boxes for _, boxes in rows]),
            "readable": torch.tensor([bool(own) for own, _ in rows]),
            "index": torch.tensor(indices),
        }

    @property
    def threads(self) -> int:
        """Images read at once: as many as torch has threads here; one where a tower looks at them first, which is not safe in threads."""
        return 1 if looks_at(self.sampler) == "attention" else torch.get_num_threads()

    def _pictures(self, index: int) -> tuple[list[Tensor], Tensor]:
        """The views of one image, or with `cut` false the image itself, and its boxes; nothing and zeros where it cannot be read."""
        try:
            image = self.images.open(index)
        except ImageError:
            return [], torch.zeros_like(boxes_of(self.sampler, 8, 8, "", 0))
        pixels = shared_pixels(image) if self.cut else to_tensor(image)
        boxes = image_boxes(pixels, self.images.ids[index], self.sampler, self.seed)
        return (separate_views(pixels, wanted(boxes, self.sampler), self.spec) if self.cut else [pixels]), boxes


@cache
def _readers(threads: int) -> ThreadPoolExecutor:
    """Threads that read images, kept: new ones for every group would cost what they save, in fresh memory."""
    return ThreadPoolExecutor(threads, thread_name_prefix="views")
