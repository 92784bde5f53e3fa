"""APE-T, the trained form of APE (Zhu et al., ICCV 2023), as its authors' code has it."""

from collections.abc import Callable
from functools import cache
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.ape import criterion as ranking
from multicrop.adapters.base import Examples, pooled, samples
from multicrop.adapters.selection import Search, SelectedAdapter, accuracy
from multicrop.adapters.tip_adapter import by_class
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views, pools
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Count, OneOf, Positive, Samples, Seed, Share, ViewSet, Weight

CRITERIA = ("text", "text_and_images")


class ApeT(SelectedAdapter):
    """Compute the aggregator's logits with prompts T_cm + r_c plus alpha * exp(-beta (1 - f F'^T)) diag(v) L, with F'_i = F_i + r_(y_i).

    F are the keys of the support images and L their one-hot labels as in `TipAdapter`. The residuals r are learned from 0 on the Q best
    channels and are 0 elsewhere; the weights v of the keys are learned from 1. Neither prompts nor keys are normalised again, and
    affinities are over all channels. Channels are ranked by J as in `Ape`, by default of the class texts alone. `losses` holds the mean
    loss of each epoch.

    Source: Zhu et al., ICCV 2023. AdamW with weight decay on r and v, cosine decay, cross entropy at fixed alpha and beta. The first epoch
    with the best validation accuracy is kept, then alpha and beta are selected on validation images; without `search` the last epoch is
    kept. The authors' validation images are the complete validation split (for ImageNet the test set); their queries are new
    augmentations, here single views. They have one prompt per class; here all prompts of a class share its r. `residual` is ours.

    Args:
        score: The run's aggregator, fused with the global view.
        criterion: What ranks the channels, ``"text"``, or ``"text_and_images"`` as in `Ape`.
        similarity_weight: Weight of the similarity between classes in J.
        variance_weight: Weight of the variance over classes in J.
        channel_share: The share of the channels to keep, above 0 and at most 1.
        view_set: The views whose mean is key and query, ``"all"`` or ``"crops"``.
        samples: Training queries, ``"views"``: single views, as many per epoch as images; ``"images"``: pooled images.
        learning_rate: Initial learning rate of AdamW.
        eps: Term in the denominator of AdamW.
        weight_decay: Weight decay of AdamW.
        epochs: Number of epochs.
        batch_size: Queries per step.
        seed: Seed of the order of the queries.
        search: Values of alpha, beta and residual to try, see `SelectedAdapter`.
        **knobs: alpha (weight of the cache logits), beta (decay of a key's affinity with its distance) and residual (scale of the prompts'
            residual; 0: the prompts as they were).

    Raises:
        ValueError: If `criterion` is neither, or channel_share is outside its range.
    """

    keys: Tensor
    labels: Tensor
    key_weights: Tensor
    step: Tensor

    def __init__(
        self,
        *,
        score: Score,
        criterion: Annotated[str, OneOf(CRITERIA)],
        similarity_weight: Weight,
        variance_weight: Weight,
        channel_share: Share,
        view_set: ViewSet,
        samples: Samples,
        learning_rate: Weight,
        eps: Positive,
        weight_decay: Weight,
        epochs: Count,
        batch_size: Count,
        seed: Seed,
        search: Search = None,
        **knobs: Weight,
    ) -> None:
        super().__init__(score=score, search=search, **knobs)
        if criterion not in CRITERIA or not 0 < channel_share <= 1:
            raise ValueError(
                f"adapter.criterion is {' or '.join(CRITERIA)} and adapter.channel_share above 0 and at most 1, "
                f"got {criterion!r} and {channel_share}"
            )
        self.criterion, self.weights, self.channel_share = criterion, (similarity_weight, variance_weight), channel_share
        self.view_set, self.samples = view_set, samples
        self.descent, self.decay = Descent(learning_rate, epochs, batch_size, seed), (eps, weight_decay)
        self.watched: Examples | None = None  # the validation images that choose the epoch
        self.searched = search is not None
        self.losses: list[float] = []
        for name in ("keys", "key_weights", "step"):
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))

    def fit(self, support: Examples, validation: Examples) -> None:
        """Train, keep the epoch that is best on the validation images where there is a search, and select the hyper-parameters."""
        self.watched = validation if self.searched else None
        super().fit(support, validation)
        self.watched = None

    def learn(self, support: Examples) -> None:
        """Train the residuals and the weights of the keys."""
        keys, self.labels = pooled(support.views, self.view_set), support.labels
        channels = self.channels(keys)
        queries, labels = samples(support, self.view_set, self.samples)
        residual, weights = nn.Parameter(torch.zeros(support.logits.shape[1], len(channels))), nn.Parameter(torch.ones(len(keys)))

        def state() -> tuple[Tensor, Tensor, Tensor]:
            step = residual.new_zeros(len(residual), keys.shape[1]).index_copy(1, channels, residual)
            return step, keys + step[self.labels], weights

        def loss(batch: Tensor) -> Tensor:
            step, moved_keys, votes = state()
            views = queries[batch][:, None] if self.samples == "views" else support.views[batch]
            text = with_text(self.score, self.text.moved(step, unit=False))(views)
            cached = by_class(affinity(queries[batch] @ moved_keys.T, self.knobs["beta"]) * votes, self.labels, len(residual))
            return F.cross_entropy(text + self.knobs["alpha"] * cached, labels[batch])

        best, kept = -1.0, ()
        eps, weight_decay = self.decay

        def watch() -> None:
            nonlocal best, kept
            found = tuple(value.detach().clone() for value in state())
            if self.watched is not None and (right := self._right(self.watched, *found)) > best:
                best, kept = right, found

        self.losses = train(
            loss,
            torch.optim.AdamW([residual, weights], lr=self.descent.learning_rate, fused=True, eps=eps, weight_decay=weight_decay),
            n=len(labels),
            descent=self.descent,
            per_epoch=len(self.labels),
            after_epoch=watch,
            checkpoint=None if self.watched else self.checkpoint,  # a checkpoint does not hold the best epoch
            progress=self.progress,
        )
        self.step, self.keys, self.key_weights = kept or (value.detach() for value in state())

    def channels(self, keys: Float[Tensor, "n dim"]) -> Int[Tensor, " channels"]:
        """Return the positions of the best channels."""
        text = pools.mean(self.text.features, self.text.mask)
        read = len(keys) if self.criterion == "text_and_images" else 0
        count = max(1, round(self.channel_share * text.shape[1]))
        return ranking(text, keys[:read], self.labels[:read], *self.weights).topk(count).indices

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return text logits plus cache logits as a function of alpha, beta and residual."""
        similarity = pooled(views, self.view_set) @ self.keys.T
        cached = cache(lambda beta: by_class(affinity(similarity, beta) * self.key_weights, self.labels, logits.shape[1]))

        @cache
        def text(residual: float | int) -> Logits:
            return with_text(self.score, self.text.moved(residual * self.step, unit=False))(views) if residual else logits

        return lambda alpha, beta, residual: text(residual) + alpha * cached(beta)

    def _right(self, images: Examples, step: Tensor, keys: Tensor, weights: Tensor) -> float:
        """The accuracy of a state on images, at the hyper-parameters of training."""
        self.step, self.keys, self.key_weights = step, keys, weights
        return accuracy(self.adapted(images.views, images.logits)(**self.knobs), images.labels)


def affinity(similarity: Float[Tensor, "batch n"], beta: float | int) -> Float[Tensor, "batch n"]:
    """Return exp(-beta (1 - similarity))."""
    return torch.exp(-beta * (1 - similarity))
