"""TaskRes (Yu et al., CVPR 2023): a learned residual on the class's text features."""

import torch
from torch import nn
from torch.nn import functional as F

from multicrop.adapters.base import Adapter, Examples, Score, accuracy, with_text
from multicrop.adapters.training import train
from multicrop.aggregators import Logits, Views
from multicrop.prompts import TextBank


class TaskRes(Adapter):
    """The aggregator's logits with prompts T'_cm = norm(T_cm + residual_scale * x_c), x (classes, dim) learned from 0.

    Trained by cross entropy through the aggregator (a transport plan is a constant there) with Adam and cosine decay; the last epoch is
    kept (the authors': 100, from 8 shots 200). The authors have one prompt a class; here all prompts of a class share its x. Their T is the
    raw text embedding of norm about 10 (CLIP), ours is unit: the same scale moves ours farther, so `residual_scale` is against a unit
    vector. They also warm up for one epoch and use fresh augmentations. `losses` holds the mean loss of each epoch. Plain loop: see
    `training`.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        residual_scale: float,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score)
        self.residual_scale, self.learning_rate = residual_scale, learning_rate
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.residual = nn.Parameter(torch.zeros(len(text.prompts), text.features.shape[-1]))
        self.losses: list[float] = []

    def fit(self, support: Examples, validation: Examples) -> None:
        """Train x on the support images; the validation images only report."""
        self.losses = train(
            lambda batch: F.cross_entropy(self.adapted(support.views[batch]), support.labels[batch]),
            torch.optim.Adam([self.residual], lr=self.learning_rate),
            n=len(support.labels),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        with torch.no_grad():
            chosen = {"epoch": self.epochs, "accuracy": accuracy(self.adapted(validation.views), validation.labels)}
        self.selection = {"how": "fixed", "images": len(validation.labels), "chosen": chosen, "curve": [chosen]}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The aggregator's logits with the changed prompts; `logits`, made with the old ones, are not read."""
        return self.adapted(views)

    def adapted(self, views: Views) -> Logits:
        """The aggregator's logits with the changed prompts."""
        moved = F.normalize(self.text.features + self.residual_scale * self.residual[:, None], dim=-1)
        return with_text(self.score, TextBank(moved * self.text.mask[..., None], self.text.mask, self.text.prompts))(views)
