"""MultiCropCLIP: the LightningModule that joins a dual encoder, a crop sampler and an aggregator."""

from collections.abc import Sequence

import lightning as L
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from multicrop.aggregators import Aggregator
from multicrop.crops import CropSampler, boxes_of
from multicrop.datasets.base import LabelledImages
from multicrop.encoder import Encoder
from multicrop.images import ImageError, to_rgb, to_tensor
from multicrop.prompts import TextBank
from multicrop.views import PixelSpec, view_pixels


class MultiCropCLIP(L.LightningModule):
    """CLIP that looks at crops: `forward` gives class logits of images, `predict_step` the view features that fill a bank.

    All views of an image are one forward pass, so its features do not depend on the images beside it.
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
        self.encoder, self.sampler, self.text, self.aggregator, self.seed = encoder, sampler, text, aggregator, seed

    def forward(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch classes"]:
        """Class logits of PIL images; raises ValueError when the module was built without text or aggregator."""
        if self.text is None or self.aggregator is None:
            raise ValueError("class logits need MultiCropCLIP(encoder, sampler, text=..., aggregator=...)")
        return self.aggregator(self.views(images), self.text, self.encoder.logit_scale)

    @torch.inference_mode()
    def views(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch views dim"]:
        """Unit-norm features of the views of each image; crops are keyed by the image's position in the sequence."""
        pixels = [
            image_views(to_rgb(image), str(index), self.sampler, self.encoder.spec, self.seed)[0] for index, image in enumerate(images)
        ]
        return torch.stack([self.encoder.encode_images(views.to(self.device)) for views in pixels])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Adds the view features of one image to its batch; an unreadable image keeps zeros."""
        if not batch["readable"]:
            dim = self.encoder.model.config.projection_dim
            return batch | {"views": torch.zeros(len(batch["boxes"]), dim)}
        return batch | {"views": self.encoder.encode_images(batch["pixels"]).cpu()}


def image_views(image: Image.Image, image_id: str, sampler: CropSampler, spec: PixelSpec, seed: int) -> tuple[Tensor, Tensor]:
    """Pixels (views,3,side,side) and boxes (views,4) of one RGB image."""
    boxes = boxes_of(sampler, image.height, image.width, image_id, seed)
    return view_pixels(to_tensor(image), boxes, spec), boxes


class ViewDataset(Dataset):
    """The views of labelled images, one image an item; an unreadable image yields empty views and `readable` false."""

    def __init__(self, images: LabelledImages, indices: list[int], sampler: CropSampler, spec: PixelSpec, seed: int) -> None:
        self.images, self.indices, self.sampler, self.spec, self.seed = images, indices, sampler, spec, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        index = self.indices[position]
        try:
            image = self.images.open(index)
            pixels, boxes = image_views(image, self.images.ids[index], self.sampler, self.spec, self.seed)
            readable = True
        except ImageError:
            boxes = torch.zeros_like(boxes_of(self.sampler, 8, 8, "", 0))
            pixels, readable = torch.zeros(0, 3, self.spec.side, self.spec.side, dtype=torch.uint8), False
        return {"pixels": pixels, "boxes": boxes, "readable": torch.tensor(readable), "index": torch.tensor(index)}
