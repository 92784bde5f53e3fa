"""Tip-Adapter-F (Zhang et al., ECCV 2022): Tip-Adapter with learned keys."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.base import Examples, Score, Search, samples
from multicrop.adapters.tip_adapter import TipAdapter, by_class
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys F are then trained by cross entropy at the alpha and beta given; the values L stay one-hot.

    AdamW with decay 0.01 and cosine decay, as the authors; keys are not re-normalised, as theirs. A training query is a single view with
    its own text logits (`samples: views`), as many an epoch as there are images, drawn afresh in place of the authors' augmentation; or
    the pooled image (`images`), which starts on its own key. The last epoch is kept and alpha and beta are then chosen on validation
    images, where the authors keep the epoch that does best on test. `losses` holds the mean loss of each epoch.
    """

    def __init__(
        self,
        *,
        score: Score,
        alpha: float | int,
        beta: float | int,
        view_set: str,
        samples: str,
        search: Search = None,
        **descent: float | int,
    ) -> None:
        super().__init__(score=score, alpha=alpha, beta=beta, view_set=view_set, search=search)
        self.samples, self.descent, self.losses = samples, Descent(**descent), []

    def learn(self, support: Examples) -> None:
        """Fill the cache and train its keys."""
        super().learn(support)
        queries, logits, labels = self._queries(support)
        keys, knobs = nn.Parameter(self.keys.clone()), self.knobs

        def loss(batch: Tensor) -> Tensor:
            affinity = torch.exp(-knobs["beta"] * (1 - queries[batch] @ keys.T))
            return F.cross_entropy(logits[batch] + knobs["alpha"] * by_class(affinity, self.labels, logits.shape[1]), labels[batch])

        optimizer = torch.optim.AdamW([keys], lr=self.descent.learning_rate, eps=1e-4, weight_decay=0.01)
        self.losses = train(loss, optimizer, n=len(labels), per_epoch=len(support.labels), **self.keeping, **self.descent.loop)
        self.keys = keys.detach()

    @torch.no_grad()
    def _queries(self, support: Examples) -> tuple[Tensor, Logits, Tensor]:
        """Features, text logits and labels of the training queries."""
        features, labels = samples(support, self.view_set, self.samples)
        if self.samples == "images":
            return features, support.logits, labels
        return features, torch.cat([self.score(part[:, None]) for part in features.split(1024)]), labels
