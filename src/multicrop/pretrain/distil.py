"""Distillation at several sides: the image tower learns what a frozen teacher says of the same picture at the whole side."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPModel

from multicrop.pretrain.checkpoint import SIDE, Start
from multicrop.pretrain.compose import Composer
from multicrop.pretrain.module import TinyClip

INTERPOLATION = "bicubic"  # of the embedded model's image processor


class SidePictures(Dataset):
    """Batch i, a function of (seed, i) alone: pictures of the whole side, one part for each of the student's sides in turn.

    Parts for smaller sides hold no scene as a whole, because a global view has the whole side.
    """

    def __init__(self, composer: Composer, sides: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.whole, self.crops = composer, copy.copy(composer)
        self.crops.whole_share = 0.0
        self.sides, self.batch_size, self.seed = sides, batch_size, seed

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        sizes = [len(part) for part in torch.arange(self.batch_size).tensor_split(len(self.sides))]
        composers = [self.whole if side == SIDE else self.crops for side in self.sides]
        return {"images": torch.cat([compose(size, generator).images for compose, size in zip(composers, sizes, strict=True)])}


def resized(images: UInt8[Tensor, "batch 3 whole whole"], side: int) -> UInt8[Tensor, "batch 3 side side"]:
    """The pictures at another side, as crops are resampled."""
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode=INTERPOLATION, antialias=True)


@torch.no_grad()
def text_features(teacher: Start, texts: list[str]) -> Float[Tensor, "texts dim"]:
    """Unit-norm features of texts from the teacher's text tower."""
    model = CLIPModel(teacher.config)
    model.load_state_dict(teacher.weights)
    tokens = teacher.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
    return F.normalize(torch.cat([model.get_text_features(input_ids=part).pooler_output for part in tokens.split(256)]), dim=-1)


class DistilledClip(TinyClip):
    """Losses of a student at several sides against a teacher at the whole side.

    Both see the same picture, the student at one of the sides. Three losses: the cosine distance of the class tokens; the Kullback-Leibler
    divergence of the probabilities over `texts` at the teacher's logit scale; the cosine distance of the patch tokens, the teacher's
    averaged over the student's grid. The text tower is that of the teacher and is not trained. Source: Beyer et al., "Knowledge
    distillation: a good teacher is patient and consistent" (2022), for equal pictures and long training.
    """

    def __init__(self, teacher: Start, texts: list[str], sides: Sequence[int], *, text_weight: float = 0.5, **schedule: float) -> None:
        super().__init__(teacher.config, train_text=False, **schedule)
        self.sides, self.text_weight = sides, text_weight
        self.teacher = CLIPModel(teacher.config).requires_grad_(False)
        self.teacher.load_state_dict(teacher.weights)
        self.register_buffer("texts", text_features(teacher, texts), persistent=False)

    def tokens(self, model: CLIPModel, images: UInt8[Tensor, "batch 3 side side"]) -> tuple[Tensor, Tensor]:
        """Unit-norm class (B,D) and patch features (B,D,rows,rows) of pictures of any side."""
        hidden = model.vision_model(self.normalise(images), interpolate_pos_encoding=images.shape[-1] != SIDE).last_hidden_state
        tokens = F.normalize(model.visual_projection(model.vision_model.post_layernorm(hidden)).float(), dim=-1)
        rows = round((tokens.shape[1] - 1) ** 0.5)
        return tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, rows))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The three losses, each a mean over the sides, and the share of pictures that both give the same text."""
        with torch.no_grad():
            whole, patches = self.tokens(self.teacher, batch["images"])
        parts = zip(*(tensor.tensor_split(len(self.sides)) for tensor in (batch["images"], whole, patches)), self.sides, strict=True)
        found = [self._compared(self.tokens(self.clip, resized(images, side)), own, cells) for images, own, cells, side in parts]
        return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}

    def _compared(self, student: tuple[Tensor, Tensor], whole: Tensor, patches: Tensor) -> dict[str, Tensor]:
        image, cells = student
        scale = self.teacher.logit_scale.exp()
        wanted, logits = scale * whole @ self.texts.T, scale * image @ self.texts.T
        pooled = F.adaptive_avg_pool2d(patches, cells.shape[-1])
        return {
            "feature": 1 - (image * whole).sum(-1).mean(),
            "text": F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"),
            "patch": 1 - F.cosine_similarity(cells, pooled).mean(),
            "accuracy": (logits.argmax(1) == wanted.argmax(1)).float().mean(),
        }

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss that is minimised."""
        return terms["feature"] + self.text_weight * terms["text"] + self.patch_weight * terms["patch"]
