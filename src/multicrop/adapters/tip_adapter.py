"""Tip-Adapter (Zhang et al., ECCV 2022): a cache of support features beside the text logits, without training."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from multicrop import pools
from multicrop.adapters.base import Adapter, Examples
from multicrop.aggregators import Logits, Views, select_views


class TipAdapter(Adapter):
    """logits + alpha * exp(-beta (1 - f F^T)) L, with F the support keys and L their one-hot labels.

    A key is the normalised mean of an image's views, where the authors average augmented views; queries are made the same way. alpha and
    beta are the values of the given lists that do best on the validation images, ties to the first; with one value each they are fixed.
    """

    def __init__(self, *, alphas: Sequence[float], betas: Sequence[float], view_set: str) -> None:
        super().__init__()
        if not alphas or not betas or min(betas) <= 0 or min(alphas) < 0:
            raise ValueError(f"tip_adapter wants alphas >= 0 and betas > 0, got {list(alphas)} and {list(betas)}")
        self.alphas, self.betas, self.view_set = list(alphas), list(betas), view_set
        self.alpha, self.beta, self.selection = self.alphas[0], self.betas[0], {}
        self.register_buffer("keys", torch.zeros(0, 0))
        self.register_buffer("values", torch.zeros(0, 0))

    def fit(self, support: Examples, validation: Examples) -> None:
        """Fill the cache and choose alpha and beta."""
        self.keys = self._feature(support.views)
        self.values = F.one_hot(support.labels, support.logits.shape[1]).float()
        curve = []
        for alpha, beta in itertools.product(self.alphas, self.betas):
            correct = self.adapted(validation.views, validation.logits, alpha, beta).argmax(1) == validation.labels
            curve.append({"alpha": alpha, "beta": beta, "accuracy": correct.float().mean().item()})
        best = max(curve, key=lambda point: point["accuracy"])
        self.alpha, self.beta = best["alpha"], best["beta"]
        how = "validation" if len(curve) > 1 else "fixed"
        self.selection = {"how": how, "images": len(validation.labels), "chosen": best, "curve": curve}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Text logits plus the cache's, at the chosen alpha and beta."""
        return self.adapted(views, logits, self.alpha, self.beta)

    def adapted(self, views: Views, logits: Logits, alpha: float, beta: float) -> Logits:
        """Text logits plus the cache's, at any alpha and beta."""
        affinity = torch.exp(-beta * (1 - self._feature(views) @ self.keys.T))
        return logits + alpha * affinity @ self.values

    def _feature(self, views: Views) -> Float[Tensor, "batch dim"]:
        return pools.mean(select_views(views, self.view_set))
