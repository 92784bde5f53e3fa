"""Tip-Adapter-F (Zhang et al., ECCV 2022): Tip-Adapter with learned keys."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from multicrop.adapters.base import Examples, Score, samples
from multicrop.adapters.tip_adapter import TipAdapter
from multicrop.adapters.training import train
from multicrop.aggregators import Logits, Views
from multicrop.prompts import TextBank


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys F are then trained by cross entropy at alphas[0] and betas[0]; the values L stay one-hot.

    AdamW with decay 0.01 and cosine decay, batch 256, as the authors; keys are not re-normalised, as theirs. A training query is a single
    view with its own text logits (`samples: views`, standing for the authors' fresh augmentations), or the pooled image (`images`), which
    starts on its own key. The last epoch is kept and alpha and beta are then chosen on validation images, where the authors keep the epoch
    that does best on test. `losses` holds the mean loss of each epoch. Plain loop: see `training`.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        alphas: Sequence[float],
        betas: Sequence[float],
        view_set: str,
        samples: str,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score, alphas=alphas, betas=betas, view_set=view_set)
        self.samples, self.learning_rate, self.epochs, self.batch_size, self.seed = samples, learning_rate, epochs, batch_size, seed
        self.losses: list[float] = []

    def fit(self, support: Examples, validation: Examples) -> None:
        """Fill the cache, train its keys, choose alpha and beta."""
        self.fill(support)
        self._train(support)
        self.choose(validation)

    def _train(self, support: Examples) -> None:
        """Replace the keys by trained ones."""
        queries, logits, labels = self._queries(support)
        self.keys = self.keys.clone().requires_grad_()
        optimizer = torch.optim.AdamW([self.keys], lr=self.learning_rate, eps=1e-4, weight_decay=0.01)
        self.losses = train(
            lambda batch: F.cross_entropy(self.adapted(queries[batch], logits[batch], self.alphas[0], self.betas[0]), labels[batch]),
            optimizer,
            n=len(labels),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        self.keys = self.keys.detach()

    @torch.no_grad()
    def _queries(self, support: Examples) -> tuple[Views, Logits, Tensor]:
        """Views, text logits and labels of the training queries."""
        features, labels = samples(support, self.view_set, self.samples)
        queries = features[:, None]
        return queries, self.score(queries) if self.samples == "views" else support.logits, labels
