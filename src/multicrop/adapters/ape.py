"""APE, training-free form (Zhu et al., ICCV 2023): a cache on the channels that tell the classes apart."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from multicrop import pools
from multicrop.adapters.base import Adapter, Examples, Score, pooled, select
from multicrop.aggregators import Logits, Views
from multicrop.prompts import TextBank

TINY = 1e-6  # in the divergence, as the authors


class Ape(Adapter):
    """logits + alpha * exp(-beta (1 - f' F'^T)) diag(exp(gamma KL)) L, with ' the normalised restriction to the Q best channels.

    Channels are ranked by J = -w0 * (mean product of samples of two classes) + w1 * (variance of the class texts, over n - 1); samples are
    the pooled support images and the class texts W (the normalised mean of a class's prompts in `text_set`). KL is in bits: for a support
    image of class y, log2((1 + 1e-6) / (p_y + 1e-6)) with p = softmax(F' W'^T) of bare cosines. The text logits use all channels. Support
    sets may be unbalanced, where the authors' are not; Q is `channel_share` of the width, where theirs is a number for each data set.
    alpha, beta and gamma are chosen on validation images (ImageNet's are the authors' test images).
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        alphas: Sequence[float],
        betas: Sequence[float],
        gammas: Sequence[float],
        similarity_weight: float,
        variance_weight: float,
        channel_share: float,
        text_set: str,
        view_set: str,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score)
        self.grid, self.weights = _grid(alphas, betas, gammas), (similarity_weight, variance_weight)
        if not 0 < channel_share <= 1:
            raise ValueError(f"adapter.channel_share is the part of the channels to keep, above 0 and up to 1, got {channel_share}")
        self.chosen, self.channel_share, self.view_set, self.text_set = self.grid[0], channel_share, view_set, text_set
        self.register_buffer("channels", torch.zeros(0, dtype=torch.long))
        for name in ("keys", "values", "divergence"):
            self.register_buffer(name, torch.zeros(0))

    def fit(self, support: Examples, validation: Examples) -> None:
        """Rank the channels, fill the cache, choose alpha, beta and gamma."""
        chosen = self.text.select(self.text_set)
        text, keys = pools.mean(chosen.features, chosen.mask), pooled(support.views, self.view_set)
        count = max(1, round(self.channel_share * text.shape[1]))
        self.channels = criterion(text, keys, support.labels, *self.weights).topk(count).indices
        self.keys = self._restricted(keys)
        self.values = F.one_hot(support.labels, len(text)).to(keys)
        p = (self.keys @ self._restricted(text).T).softmax(1).gather(1, support.labels[:, None])[:, 0]
        self.divergence = torch.log2((1 + TINY) / (p + TINY))
        self.selection = select(self.grid, lambda **knobs: self.adapted(validation.views, validation.logits, **knobs), validation)
        self.chosen = {name: self.selection["chosen"][name] for name in ("alpha", "beta", "gamma")}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Text logits plus the cache's, at the chosen alpha, beta and gamma."""
        return self.adapted(views, logits, **self.chosen)

    def adapted(self, views: Views, logits: Logits, alpha: float, beta: float, gamma: float) -> Logits:
        """Text logits plus the cache's, at any alpha, beta and gamma."""
        affinity = torch.exp(-beta * (1 - self._restricted(pooled(views, self.view_set)) @ self.keys.T))
        return logits + alpha * (affinity * torch.exp(gamma * self.divergence)) @ self.values

    def _restricted(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n channels"]:
        return F.normalize(x[:, self.channels], dim=-1)


def criterion(
    text: Float[Tensor, "classes dim"],
    keys: Float[Tensor, "n dim"],
    labels: Int[Tensor, " n"],
    similarity_weight: float,
    variance_weight: float,
) -> Float[Tensor, " dim"]:
    """J of each channel; the sum over pairs of two classes is the square of the sum less the sum of the classes' squares."""
    sums = text.index_add(0, labels, keys)
    count = 1 + torch.bincount(labels, minlength=len(text))
    similarity = (sums.sum(0).square() - sums.square().sum(0)) / (count.sum() ** 2 - (count**2).sum())
    return variance_weight * text.var(0) - similarity_weight * similarity


def _grid(alphas: Sequence[float], betas: Sequence[float], gammas: Sequence[float]) -> list[dict[str, float]]:
    """All triples; raises ValueError when there is none or a beta is not positive."""
    if not alphas or not betas or not gammas or min(betas) <= 0:
        raise ValueError(f"ape wants adapter.alphas, betas > 0 and gammas, got {list(alphas)}, {list(betas)} and {list(gammas)}")
    return [{"alpha": alpha, "beta": beta, "gamma": gamma} for alpha, beta, gamma in itertools.product(alphas, betas, gammas)]
