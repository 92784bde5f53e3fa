"""Tip-Adapter (Zhang et al., ECCV 2022): a cache of support features beside the text logits, without training."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.adapters.base import Examples, Score, Search, Selected, pooled
from multicrop.aggregators import Logits, Views


class TipAdapter(Selected):
    """logits + alpha * exp(-beta (1 - f F^T)) L, with F the support keys and L their one-hot labels.

    A key is the normalised mean of an image's views, where the authors average augmented views; queries are made the same way. alpha and
    beta are chosen on the validation images, or fixed at the authors' first values. beta 0 gives every support image the same weight.
    """

    def __init__(self, *, score: Score, alpha: float | int, beta: float | int, view_set: str, search: Search = None) -> None:
        super().__init__(score=score, search=search, beta=beta, alpha=alpha)
        self.view_set = view_set
        self.register_buffer("keys", torch.zeros(0, 0))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))

    def learn(self, support: Examples) -> None:
        """Fill the cache."""
        self.keys, self.labels = pooled(support.views, self.view_set), support.labels

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Text logits plus the cache's."""
        similarity = pooled(views, self.view_set) @ self.keys.T
        cached = cache(lambda beta: by_class(torch.exp(-beta * (1 - similarity)), self.labels, logits.shape[1]))
        return lambda beta, alpha: logits + alpha * cached(beta)


def by_class(affinity: Float[Tensor, "batch n"], labels: Int[Tensor, " n"], n_classes: int) -> Logits:
    """The affinity to each class: a sum over its support images, the product with their one-hot labels."""
    return affinity.new_zeros(len(affinity), n_classes).index_add(1, labels, affinity)
