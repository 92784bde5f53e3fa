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
from multicrop.pretrain.module import TinyClip, image_tokens

INTERPOLATION = "bicubic"  # of the embedded model's image processor
POOL = 50  # batches in memory, whose pictures come again


def resized(images: UInt8[Tensor, "batch 3 whole whole"], side: int) -> UInt8[Tensor, "batch 3 side side"]:
    """The pictures at another side, as crops are resampled."""
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode=INTERPOLATION, antialias=True)


def token_features(
    clip: CLIPModel, images: UInt8[Tensor, "batch 3 side side"]
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim rows rows"]]:
    """Unit-norm features of the class token and of the patches, of pictures of any side."""
    tokens = image_tokens(clip, images)
    rows = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, rows))


class Teacher:
    """A frozen checkpoint: its features of texts, and those of pictures when they are asked for."""

    def __init__(self, start: Start, texts: Sequence[str]) -> None:
        self.clip = CLIPModel(start.config).requires_grad_(False).eval()
        self.clip.load_state_dict(start.weights)
        self.scale = self.clip.logit_scale.exp()
        tokens = start.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")["input_ids"]
        self.texts = F.normalize(
            torch.cat([self.clip.get_text_features(input_ids=part).pooler_output for part in tokens.split(256)]), dim=-1
        )

    @torch.no_grad()
    def batch(self, images: UInt8[Tensor, "batch 3 side side"]) -> dict[str, Tensor]:
        """The pictures, and their features: those of the class token, and of the patches (batch, dim, rows, rows)."""
        whole, cells = token_features(self.clip, images)
        return {"images": images, "whole": whole, "cells": cells}


class SidePictures(Dataset):
    """Batch i, a function of (seed, i) alone: pictures of the whole side with their teacher's features, one part per side of the student.

    Composing costs more than a step at half of the side, so every picture comes `visits` times, among those of POOL batches. Parts for
    smaller sides hold no scene as a whole, because a global view has the whole side.
    """

    def __init__(self, composer: Composer, teacher: Teacher, sides: Sequence[int], *, batch_size: int, visits: int, seed: int) -> None:
        self.whole, self.crops, self.teacher = composer, copy.copy(composer), teacher
        self.crops.whole_share = 0.0
        self.sides, self.batch_size, self.visits, self.seed = sides, batch_size, visits, seed
        self.pool: dict[int, dict[str, Tensor]] = {}

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        round_, place = divmod(step, POOL * self.visits)
        generator = self._generator(round_)
        order = torch.cat([torch.randperm(POOL, generator=generator) for _ in range(self.visits)])
        number = round_ * POOL + int(order[place])
        self.pool = {known: batch for known, batch in self.pool.items() if known // POOL == round_}
        if number not in self.pool:
            self.pool[number] = self.teacher.batch(self._images(number))
        return self.pool[number]

    def _images(self, number: int) -> UInt8[Tensor, "batch 3 side side"]:
        generator = self._generator(number)
        sizes = [len(part) for part in torch.arange(self.batch_size).tensor_split(len(self.sides))]
        composers = [self.whole if side == SIDE else self.crops for side in self.sides]
        return torch.cat([compose(size, generator).images for compose, size in zip(composers, sizes, strict=True)])

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed << 32) + number)


class DistilledClip(TinyClip):
    """Losses of a student at several sides against a teacher at the whole side.

    Both see the same picture, the student at one of the sides. Three losses: the cosine distance of the class tokens; the Kullback-Leibler
    divergence of the probabilities over the teacher's texts, at its logit scale; the cosine distance of the patches, the teacher's averaged
    over the student's grid. The text tower is that of the teacher and is not trained. Source: Beyer et al., "Knowledge distillation: a good
    teacher is patient and consistent" (2022), for equal pictures.
    """

    def __init__(self, start: Start, teacher: Teacher, sides: Sequence[int], *, text_weight: float = 0.5, **schedule: float | int) -> None:
        super().__init__(start.config, train_text=False, **schedule)
        self.clip.load_state_dict(start.weights)
        self.sides, self.text_weight = sides, text_weight
        self.register_buffer("scale", teacher.scale, persistent=False)
        self.register_buffer("texts", teacher.texts, persistent=False)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The three losses, each a mean over the sides, and the share of pictures that both give the same text."""
        parts = zip(*(batch[name].tensor_split(len(self.sides)) for name in ("images", "whole", "cells")), self.sides, strict=True)
        found = [self._compared(token_features(self.clip, resized(images, side)), whole, cells) for images, whole, cells, side in parts]
        return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}

    def _compared(self, student: tuple[Tensor, Tensor], whole: Tensor, cells: Tensor) -> dict[str, Tensor]:
        image, own = student
        wanted, logits = self.scale * whole @ self.texts.T, self.scale * image @ self.texts.T
        pooled = F.adaptive_avg_pool2d(cells, own.shape[-1])
        return {
            "feature": 1 - (image * whole).sum(-1).mean(),
            "text": F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"),
            "patch": 1 - F.cosine_similarity(own, pooled).mean(),
            "accuracy": (logits.argmax(1) == wanted.argmax(1)).float().mean(),
        }

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss that is minimised."""
        return terms["feature"] + self.text_weight * terms["text"] + self.patch_weight * terms["patch"]
