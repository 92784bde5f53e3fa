"""APE, training-free form (Zhu et al., ICCV 2023): a cache on the feature channels that separate the classes best."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from multicrop.adapters.base import Examples, pooled
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.adapters.tip_adapter import by_class
from multicrop.aggregators import Logits, Views, pools
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Share, TextSet, ViewSet, Weight

TINY = 1e-6  # in the divergence, as in the authors' code


class Ape(SelectedAdapter):
    """Compute logits + alpha * exp(-beta (1 - f' F'^T)) diag(exp(gamma KL)) L, with ' the normalised restriction to the Q best channels.

    Channels are ranked by J = -w0 * (mean product of samples of two classes) + w1 * (variance of the class texts, over n - 1); samples are
    the pooled support images and the class texts W (the normalised mean of a class's prompts in `text_set`). KL is in bits: for a support
    image of class y, log2((1 + 1e-6) / (p_y + 1e-6)) with p = softmax(F' W'^T) of cosines without a scale. The text logits use all
    channels.

    Source: Zhu et al., ICCV 2023. Support sets may be unbalanced, where the authors' are balanced; Q is `channel_share` of the feature
    dimension, where theirs is a number per data set. alpha, beta and gamma are selected on validation images (for ImageNet, the authors
    select on test images).

    Args:
        score: The run's aggregator, fused with the global view.
        similarity_weight: w0.
        variance_weight: w1.
        channel_share: The share of the channels to keep, above 0 and at most 1.
        text_set: Prompts whose mean is a class text, ``"label"``, ``"descriptions"``, ``"local"``, ``"global"``, ``"both"`` or ``"all"``.
        view_set: The views whose mean is key and query, ``"all"`` or ``"crops"``.
        search: Values of alpha, beta and gamma to try, see `SelectedAdapter`.
        **knobs: alpha (weight of the cache logits), beta (decay of a key's affinity with its distance) and gamma (weight of KL).

    Raises:
        ValueError: If channel_share is outside its range.
    """

    channels: Tensor
    labels: Tensor
    keys: Tensor
    divergence: Tensor
    key_weights: Tensor

    def __init__(
        self,
        *,
        score: Score,
        similarity_weight: Weight,
        variance_weight: Weight,
        channel_share: Share,
        text_set: TextSet,
        view_set: ViewSet,
        search: Search = None,
        **knobs: Weight,
    ) -> None:
        super().__init__(score=score, search=search, **knobs)
        if not 0 < channel_share <= 1:
            raise ValueError(f"adapter.channel_share is the share of the channels to keep, above 0 and at most 1, got {channel_share}")
        self.weights, self.channel_share = (similarity_weight, variance_weight), channel_share
        self.view_set, self.text_set = view_set, text_set
        self.register_buffer("channels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))
        self.register_buffer("keys", torch.zeros(0, 0))
        self.register_buffer("divergence", torch.zeros(0))
        self.register_buffer("key_weights", torch.ones(0))

    def learn(self, support: Examples) -> None:
        """Rank the channels and fill the cache."""
        chosen = self.text.select(self.text_set)
        text, keys = pools.mean(chosen.features, chosen.mask), pooled(support.views, self.view_set)
        count = max(1, round(self.channel_share * text.shape[1]))
        self.channels = criterion(text, keys, support.labels, *self.weights).topk(count).indices
        self.keys, self.labels, self.key_weights = self.restricted(keys), support.labels, torch.ones(len(keys))
        p = (self.keys @ self.restricted(text).T).softmax(1).gather(1, support.labels[:, None])[:, 0]
        self.divergence = torch.log2((1 + TINY) / (p + TINY))

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return text logits plus cache logits as a function of beta, gamma and alpha."""
        cached = self.cached_by_knobs(views)
        return lambda beta, gamma, alpha: logits + alpha * cached(beta, gamma)

    def cached_by_knobs(self, views: Views) -> Callable[[float | int, float | int], Logits]:
        """Return the cache logits of the views as a function of beta and gamma, computed once per pair of values."""
        similarity = self.restricted(pooled(views, self.view_set)) @ self.keys.T
        return cache(lambda beta, gamma: self.cached(similarity, self.key_weights, beta, gamma))

    def cached(self, similarity: Float[Tensor, "batch n"], weights: Float[Tensor, " n"], beta: float | int, gamma: float | int) -> Logits:
        """Compute the cache logits.

        Args:
            similarity: Cosines of the queries to the keys on the chosen channels, shape (batch, n).
            weights: Weight of each key, shape (n,); 1 in the training-free form.
            beta: Decay of a key's affinity with its distance.
            gamma: Weight of KL.

        Returns:
            Logits, shape (batch, classes).
        """
        affinity = torch.exp(gamma * self.divergence - beta * (1 - similarity)) * weights
        return by_class(affinity, self.labels, len(self.text.prompts))

    def restricted(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n channels"]:
        """Return unit-norm features of the chosen channels."""
        return F.normalize(x[:, self.channels], dim=-1)


def criterion(
    text: Float[Tensor, "classes dim"],
    keys: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    similarity_weight: float | int,
    variance_weight: float | int,
) -> Float[Tensor, " dim"]:
    """Compute the ranking criterion J of each channel, shape (dim,).

    The sum of products over pairs of two classes is the square of the sum less the sum of the classes' squares.
    """
    sums = text.index_add(0, labels, keys)
    count = 1 + torch.bincount(labels, minlength=len(text))
    similarity = (sums.sum(0).square() - sums.square().sum(0)) / (count.sum() ** 2 - (count**2).sum())
    return variance_weight * text.var(0) - similarity_weight * similarity
