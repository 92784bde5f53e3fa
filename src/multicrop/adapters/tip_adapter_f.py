"""Tip-Adapter-F (Zhang et al., ECCV 2022): Tip-Adapter with learned keys."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.base import Examples, samples
from multicrop.adapters.selection import Search
from multicrop.adapters.tip_adapter import TipAdapter, by_class
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Count, Samples, Seed, ViewSet, Weight


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys F are trained by cross entropy at fixed alpha and beta; the values L stay one-hot.

    Source: Zhang et al., ECCV 2022. AdamW with weight decay 0.01 and cosine decay, as in the authors' code; as there, keys are not
    normalised again. The last epoch is kept, and alpha and beta are then selected on validation images, where the authors keep the epoch
    that is best on the test set. `losses` holds the mean loss of each epoch.

    Args:
        score: The run's aggregator, fused with the global view.
        alpha: Weight of the cache logits in training.
        beta: Decay of a key's affinity with its distance in training.
        view_set: The views whose mean is key and query, ``"all"`` or ``"crops"``.
        samples: Training queries. ``"views"``: single views with their own text logits; an epoch draws as many as there are images, in
            place of the authors' augmentation. ``"images"``: pooled images, each of which starts on its own key.
        learning_rate: Initial learning rate of AdamW.
        epochs: Number of epochs.
        batch_size: Queries per step.
        seed: Seed of the order of the queries.
        search: Values of alpha and beta to try, see `SelectedAdapter`.

    Raises:
        ValueError: In `fit`, if `samples` is neither, or epochs or batch_size is not positive.
    """

    def __init__(
        self,
        *,
        score: Score,
        alpha: Weight,
        beta: Weight,
        view_set: ViewSet,
        samples: Samples,
        learning_rate: Weight,
        epochs: Count,
        batch_size: Count,
        seed: Seed,
        search: Search = None,
    ) -> None:
        super().__init__(score=score, alpha=alpha, beta=beta, view_set=view_set, search=search)
        self.samples, self.descent = samples, Descent(learning_rate, epochs, batch_size, seed)
        self.losses: list[float] = []

    def learn(self, support: Examples) -> None:
        """Fill the cache and train its keys."""
        super().learn(support)
        queries, logits, labels = self._queries(support)
        keys, knobs = nn.Parameter(self.keys.clone()), self.knobs

        def loss(batch: Tensor) -> Tensor:
            affinity = torch.exp(-knobs["beta"] * (1 - queries[batch] @ keys.T))
            return F.cross_entropy(logits[batch] + knobs["alpha"] * by_class(affinity, self.labels, logits.shape[1]), labels[batch])

        optimizer = torch.optim.AdamW([keys], lr=self.descent.learning_rate, eps=1e-4, weight_decay=0.01, fused=True)
        self.losses = train(
            loss,
            optimizer,
            n=len(labels),
            per_epoch=len(support.labels),
            descent=self.descent,
            checkpoint=self.checkpoint,
            progress=self.progress,
        )
        self.keys = keys.detach()

    @torch.no_grad()
    def _queries(self, support: Examples) -> tuple[Tensor, Logits, Tensor]:
        """Features, text logits and labels of the training queries."""
        features, labels = samples(support, self.view_set, self.samples)
        if self.samples == "images":
            return features, support.logits, labels
        return features, torch.cat([self.score(part[:, None]) for part in features.split(1024)]), labels
