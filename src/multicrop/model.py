"""MultiCropCLIP: the LightningModule that joins a HuggingFace CLIP, a crop sampler and an aggregator."""

import logging
import math
import sys
from collections.abc import Sequence

import lightning as L
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from multicrop.aggregators import AggregatorFunction
from multicrop.crops import CropSampler
from multicrop.crops.pixels import shares_of_view
from multicrop.crops.resampling import device_view_pixels
from multicrop.crops.views import ViewGroup, image_views, resampled_boxes
from multicrop.data.images import shared_pixels, to_rgb
from multicrop.encoder import Encoder, with_encoder
from multicrop.text import TextBank

log = logging.getLogger(__name__)


class EncodedGroup(ViewGroup):
    """A group with the features of its views."""

    views: Tensor  # (images,views,dim)


class MultiCropCLIP(L.LightningModule):
    """A CLIP that looks at crops: class logits of images, or the view features that fill a bank.

    Args:
        encoder: The dual encoder (``multicrop.encoder.load_encoder``).
        sampler: The crop policy with its knobs bound (``multicrop.crops``).
        text: The prompts of each class, encoded; only ``forward`` needs it.
        aggregator: Views and prompts to class logits (``multicrop.aggregators``); only ``forward`` needs it.
        seed: Seed of the crops.

    Example:
        >>> from functools import partial
        >>> from PIL import Image
        >>> from multicrop.aggregators import mean_feature
        >>> from multicrop.crops import random
        >>> from multicrop.encoder import load_encoder
        >>> encoder = load_encoder("tiny")
        >>> text = encoder.encode_prompts([["a photo of a cat.", "pointed ears"], ["a photo of a dog.", "a wet nose"]])
        >>> sampler = partial(random, n_crops=4, min_side=0.5, max_side=0.9)
        >>> clip = MultiCropCLIP(encoder, sampler, text=text, aggregator=partial(mean_feature, view_set="all", text_set="all"))
        >>> clip([Image.new("RGB", (120, 90), "orange")]).shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        encoder: Encoder,
        sampler: CropSampler,
        *,
        text: TextBank | None = None,
        aggregator: AggregatorFunction | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.sampler, self.text, self.aggregator, self.seed = encoder, with_encoder(sampler, encoder), text, aggregator, seed
        self.views_at_once = sys.maxsize

    def forward(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch classes"]:
        """Classify images.

        Args:
            images: PIL images of any mode.

        Returns:
            Logits, shape (batch, classes).

        Raises:
            ValueError: If the module was built without text or aggregator.
        """
        if self.text is None or self.aggregator is None:
            raise ValueError("class logits need MultiCropCLIP(encoder, sampler, text=..., aggregator=...)")
        return self.aggregator(self.views(images), self.text, self.encoder.logit_scale)

    @torch.inference_mode()
    def views(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch views dim"]:
        """Encode the views of images; crops are keyed by the image's position in the sequence.

        Args:
            images: PIL images of any mode.

        Returns:
            Unit-norm features, shape (batch, views, dim); view 0 is the global view.
        """
        decoded = [shared_pixels(to_rgb(image)) for image in images]
        rows = [image_views(pixels, str(index), self.sampler, self.encoder.spec, self.seed) for index, pixels in enumerate(decoded)]
        return torch.cat([self.features(pixels.to(self.device), boxes[None].to(self.device)) for pixels, boxes in rows])

    def predict_step(self, batch: ViewGroup, batch_idx: int) -> EncodedGroup:
        """Add the features of the views to a group of images; the features of an unreadable image are zeros."""
        boxes, readable, pixels = batch["boxes"], batch["readable"], batch["pixels"]
        features = torch.zeros(*boxes.shape[:2], self.encoder.dim)
        if (vectors := batch.get("vectors")) is not None:
            features[readable.cpu()] = vectors.cpu()
        elif readable.any():
            if isinstance(pixels, list):
                pixels = torch.cat([self.cut(image, own) for image, own in zip(pixels, boxes[readable], strict=True)])
            features[readable.cpu()] = self.features(pixels, boxes[readable]).cpu()
        return {**batch, "views": features}

    def cut(self, image: UInt8[Tensor, "3 height width"], boxes: Float[Tensor, "views 4"]) -> UInt8[Tensor, "resampled 3 side side"]:
        """The views of a decoded image, resampled on its device."""
        return device_view_pixels(image, resampled_boxes(boxes, self.sampler), self.encoder.spec)

    def features(
        self, pixels: UInt8[Tensor, "resampled 3 side side"], boxes: Float[Tensor, "images views 4"]
    ) -> Float[Tensor, "images views dim"]:
        """Features of the views of images, from the pixels and boxes that `image_views` or `cut` made of each."""
        if self.sampler.looks_at == "tokens":
            return self.encoder.encode_feature_crops(pixels, shares_of_view(boxes, self.encoder.spec))
        if (side := self.encoder.spec.crop_side) is None or boxes.shape[1] == 1:
            return self.encode(pixels).unflatten(0, boxes.shape[:2])
        views = pixels.unflatten(0, boxes.shape[:2])
        crops = self.encode(views[:, 1:, :, :side, :side].flatten(0, 1))
        return torch.cat([self.encode(views[:, 0])[:, None], crops.unflatten(0, (len(boxes), -1))], dim=1)

    def encode(self, pixels: UInt8[Tensor, "views 3 side side"]) -> Float[Tensor, "views dim"]:
        """Features of views, in parts where they do not fit into memory at once: the part is halved until it does."""
        views, smaller = len(pixels), (self.encoder.spec.side / pixels.shape[-1]) ** 2
        best = math.ceil(views / (self.encoder.views_in_cache * smaller)) if pixels.device.type == "cpu" else 1
        while True:
            parts = max(1, best, math.ceil(views / self.views_at_once))
            try:
                return torch.cat([self.encoder.encode_images(part) for part in pixels.tensor_split(parts)])
            except RuntimeError as error:
                largest = math.ceil(views / parts)
                if not _out_of_memory(error) or largest == 1:
                    raise
                self.views_at_once = largest // 2
                log.warning(f"{largest} views do not fit into memory at once; continuing with {self.views_at_once}")


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
