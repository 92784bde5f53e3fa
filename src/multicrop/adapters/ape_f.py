"""APE-T, the trained form of APE (Zhu et al., ICCV 2023): a learned residual for each class on the chosen channels."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.ape import Ape
from multicrop.adapters.base import Examples, Score, Search, pooled
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.taskres import moved
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import with_text

DESCENT = ("learning_rate", "epochs", "batch_size", "seed", "plan_epochs")


class ApeF(Ape):
    """APE whose class c has a residual r_c on the Q channels, added to its keys and to all its prompts, and a weight for each key.

    Both are trained by cross entropy at the alpha, beta and gamma given, from r = 0 and weights 1, which is APE, by AdamW (eps 1e-4, decay
    0.01) with cosine decay for 20 epochs, as the authors; the last epoch is kept. Prompts act through the aggregator. Moved keys and
    prompts are made unit again. Training queries are the pooled support images, where the authors augment afresh. Then alpha, beta, gamma
    and `residual` (1: the moved prompts, 0: the old ones) are chosen on validation images. `losses` holds the mean loss of each epoch.
    """

    def __init__(self, *, score: Score, search: Search = None, **knobs: float | int | str) -> None:
        descent = {name: knobs.pop(name) for name in DESCENT if name in knobs}
        super().__init__(score=score, search=search, **knobs)
        self.descent, self.losses = Descent(**descent), []
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
            text = score(batch, support.views[batch], moved(self.text, self._padded(residual)))
            extra = self.cached(queries[batch] @ keys.T, weights, beta, gamma)
            return F.cross_entropy(text + alpha * extra, support.labels[batch])

        optimizer = torch.optim.AdamW([residual, weights], lr=self.descent.learning_rate, eps=1e-4, weight_decay=0.01)
        self.losses = train(loss, optimizer, n=len(support.labels), **self.keeping, **self.descent.loop)
        self.step, self.key_weights = self._padded(residual.detach()), weights.detach()
        self.keys = F.normalize(self.keys + residual.detach()[self.labels], dim=-1)

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Text logits under the old or the moved prompts, plus the cache's."""
        similarity = self.restricted(pooled(views, self.view_set)) @ self.keys.T

        cached = cache(lambda beta, gamma: self.cached(similarity, self.key_weights, beta, gamma))

        @cache
        def text(residual: float | int) -> Logits:
            return with_text(self.score, moved(self.text, residual * self.step))(views) if residual else logits

        return lambda residual, beta, gamma, alpha: text(residual) + alpha * cached(beta, gamma)

    def _padded(self, residual: Float[Tensor, "classes channels"]) -> Float[Tensor, "classes dim"]:
        """The residual on all channels, 0 on those that were not chosen."""
        return residual.new_zeros(len(residual), self.text.features.shape[-1]).index_copy(1, self.channels, residual)
