"""A variant of APE-T (Zhu et al., ICCV 2023) that keeps the form of APE: a learned residual per class on the chosen channels."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.ape import Ape
from multicrop.adapters.base import Examples, pooled
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.selection import Search
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Count, Seed, Share, TextSet, ViewSet, Weight


class ApeF(Ape):
    """APE whose class c has a residual r_c on the Q channels, added to its keys and to all its prompts, and a weight per key.

    Both are trained by cross entropy at fixed alpha, beta and gamma, from r = 0 and weights 1 (which is APE). Prompts act through the
    aggregator; moved keys and prompts are normalised again. Then alpha, beta, gamma and residual are selected on validation images.
    `losses` holds the mean loss of each epoch.

    Source: after Zhu et al., ICCV 2023. Optimiser (AdamW, eps 1e-4, weight decay 0.01, as Tip-Adapter-F), epochs, channels by text and
    images, the restriction of keys and queries to them, normalisation and exp(gamma KL) are ours; `ApeT` is the authors' form. The last
    epoch is kept. Training queries are the pooled support images.

    Args:
        score: The run's aggregator, fused with the global view.
        similarity_weight: See `Ape`, as the next four.
        variance_weight: See `Ape`.
        channel_share: See `Ape`.
        text_set: See `Ape`.
        view_set: See `Ape`.
        learning_rate: Initial learning rate of AdamW.
        epochs: Number of epochs.
        batch_size: Images per step.
        seed: Seed of the order of the images.
        plan_epochs: Number of epochs for which a transport plan is held, see `HeldPlans`.
        search: Values of alpha, beta, gamma and residual to try, see `SelectedAdapter`.
        **knobs: alpha, beta and gamma as in `Ape`, and residual (scale of the prompts' residual; 0: the prompts as they were).
    """

    step: Tensor

    def __init__(
        self,
        *,
        score: Score,
        similarity_weight: Weight,
        variance_weight: Weight,
        channel_share: Share,
        text_set: TextSet,
        view_set: ViewSet,
        learning_rate: Weight,
        epochs: Count,
        batch_size: Count,
        seed: Seed,
        plan_epochs: Count = 1,
        search: Search = None,
        **knobs: Weight,
    ) -> None:
        super().__init__(
            score=score,
            similarity_weight=similarity_weight,
            variance_weight=variance_weight,
            channel_share=channel_share,
            text_set=text_set,
            view_set=view_set,
            search=search,
            **knobs,
        )
        self.descent = Descent(learning_rate, epochs, batch_size, seed, plan_epochs)
        self.losses: list[float] = []
        self.register_buffer("step", torch.zeros(0, 0))

    def learn(self, support: Examples) -> None:
        """Fill the cache as APE does, then train the residuals and the weights of the keys."""
        super().learn(support)
        residual = nn.Parameter(torch.zeros(support.logits.shape[1], len(self.channels)))
        weights = nn.Parameter(torch.ones(len(self.keys)))
        score = HeldPlans(self.score, len(support.labels), self.descent.plan_epochs)
        queries = self.restricted(pooled(support.views, self.view_set))
        beta, gamma, alpha = (self.knobs[name] for name in ("beta", "gamma", "alpha"))

        def loss(batch: Tensor) -> Tensor:
            keys = F.normalize(self.keys + residual[self.labels], dim=-1)
            text = score(batch, support.views[batch], self.text.moved(self._padded(residual)))
            extra = self.cached(queries[batch] @ keys.T, weights, beta, gamma)
            return F.cross_entropy(text + alpha * extra, support.labels[batch])

        optimizer = torch.optim.AdamW([residual, weights], lr=self.descent.learning_rate, eps=1e-4, weight_decay=0.01, fused=True)
        n = len(support.labels)
        self.losses = train(loss, optimizer, n=n, descent=self.descent, checkpoint=self.checkpoint, progress=self.progress)
        self.step, self.key_weights = self._padded(residual.detach()), weights.detach()
        self.keys = F.normalize(self.keys + residual.detach()[self.labels], dim=-1)

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return text logits plus cache logits as a function of residual, beta, gamma and alpha."""
        cached = self.cached_by_knobs(views)

        @cache
        def text(residual: float | int) -> Logits:
            return with_text(self.score, self.text.moved(residual * self.step))(views) if residual else logits

        return lambda residual, beta, gamma, alpha: text(residual) + alpha * cached(beta, gamma)

    def _padded(self, residual: Float[Tensor, "classes channels"]) -> Float[Tensor, "classes dim"]:
        """The residual on all channels, 0 on those that were not chosen."""
        return residual.new_zeros(len(residual), self.text.features.shape[-1]).index_copy(1, self.channels, residual)
