"""Tip-Adapter (Zhang et al., ECCV 2022): a cache of support features beside the text logits, without training."""

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from multicrop.adapters.base import Adapter, Examples, Score, pooled, select
from multicrop.aggregators import Logits, Views
from multicrop.prompts import TextBank


class TipAdapter(Adapter):
    """logits + alpha * exp(-beta (1 - f F^T)) L, with F the support keys and L their one-hot labels.

    A key is the normalised mean of an image's views, where the authors average augmented views; queries are made the same way. alpha and
    beta are the values of the given lists that do best on the validation images, ties to the first; with one value each they are fixed.
    """

    def __init__(
        self, *, text: TextBank, logit_scale: float, score: Score, alphas: Sequence[float], betas: Sequence[float], view_set: str
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score)
        if not alphas or not betas or min(betas) <= 0 or min(alphas) < 0:
            raise ValueError(f"a cache wants adapter.alphas >= 0 and adapter.betas > 0, got {list(alphas)} and {list(betas)}")
        self.alphas, self.betas, self.view_set = list(alphas), list(betas), view_set
        self.alpha, self.beta = self.alphas[0], self.betas[0]
        self.register_buffer("keys", torch.zeros(0, 0))
        self.register_buffer("values", torch.zeros(0, 0))

    def fit(self, support: Examples, validation: Examples) -> None:
        """Fill the cache and choose alpha and beta."""
        self.fill(support)
        self.choose(validation)

    def fill(self, support: Examples) -> None:
        """Keys and values of the support images."""
        self.keys = pooled(support.views, self.view_set)
        self.values = F.one_hot(support.labels, support.logits.shape[1]).float()

    def choose(self, validation: Examples) -> None:
        """Choose alpha and beta by the validation images."""
        grid = [{"alpha": alpha, "beta": beta} for alpha, beta in itertools.product(self.alphas, self.betas)]
        self.selection = select(grid, lambda **knobs: self.adapted(validation.views, validation.logits, **knobs), validation)
        self.alpha, self.beta = self.selection["chosen"]["alpha"], self.selection["chosen"]["beta"]

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Text logits plus the cache's, at the chosen alpha and beta."""
        return self.adapted(views, logits, self.alpha, self.beta)

    def adapted(self, views: Views, logits: Logits, alpha: float, beta: float) -> Logits:
        """Text logits plus the cache's, at any alpha and beta."""
        affinity = torch.exp(-beta * (1 - pooled(views, self.view_set) @ self.keys.T))
        return logits + alpha * affinity @ self.values
