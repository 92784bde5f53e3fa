"""Tip-Adapter (Zhang et al., ECCV 2022): a cache of support features beside the text logits, without training."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.adapters.base import Examples, pooled
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import ViewSet, Weight


class TipAdapter(SelectedAdapter):
    """Compute logits + alpha * exp(-beta (1 - f F^T)) L, with F the keys of the support images and L their one-hot labels.

    Source: Zhang et al., ECCV 2022. A key is the normalised mean of the unit-norm views of an image. The authors average the raw outputs of
    ten augmentations, so that views with a longer embedding weigh more; a feature bank has no lengths. Queries are made the same way, where
    theirs are the plain image. alpha and beta are selected on validation images, or fixed at the authors' first values.

    Args:
        score: The run's aggregator, fused with the global view.
        alpha: Weight of the cache logits.
        beta: Decay of a key's affinity with its distance; 0 gives every support image the same affinity.
        view_set: The views whose mean is key and query, ``"all"`` or ``"crops"``.
        search: Values of alpha and beta to try, see `SelectedAdapter`.
    """

    keys: Tensor
    labels: Tensor

    def __init__(self, *, score: Score, alpha: Weight, beta: Weight, view_set: ViewSet, search: Search = None) -> None:
        super().__init__(score=score, search=search, beta=beta, alpha=alpha)
        self.view_set = view_set
        self.register_buffer("keys", torch.zeros(0, 0))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))

    def learn(self, support: Examples) -> None:
        """Fill the cache."""
        self.keys, self.labels = pooled(support.views, self.view_set), support.labels

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return text logits plus cache logits as a function of beta and alpha."""
        similarity = pooled(views, self.view_set) @ self.keys.T
        cached = cache(lambda beta: by_class(torch.exp(-beta * (1 - similarity)), self.labels, logits.shape[1]))
        return lambda beta, alpha: logits + alpha * cached(beta)


def by_class(affinity: Float[Tensor, "batch n"], labels: Int[Tensor, " n"], n_classes: int) -> Logits:
    """Sum the affinities to the support images of each class: the product with their one-hot labels, shape (batch, classes)."""
    return affinity.new_zeros(len(affinity), n_classes).index_add(1, labels, affinity)
