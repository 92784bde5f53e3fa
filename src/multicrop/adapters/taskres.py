"""TaskRes (Yu et al., CVPR 2023): a learned residual on the class's text features."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.base import Examples
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Count, Positive, Seed, Weight
from multicrop.text import TextBank


class TaskRes(SelectedAdapter):
    """Compute the aggregator's logits with prompts norm(T_cm + (residual_scale / text_norm) x_c), with x (classes, dim) learned from 0.

    Source: Yu et al., CVPR 2023. x is trained by cross entropy through the aggregator with Adam, one epoch at the rate `warm_up` and then
    cosine decay; the last epoch is kept, and the scale is then selected on validation images. The authors have one prompt per class; here
    all prompts of a class share its x. Their T is the raw text embedding, ours is unit-norm: norm(n T + a x) = norm(T + a x / n) with n its
    length, for which `text_norm` stands for all classes (CLIP's lie between 6 and 11). They draw a new augmentation per epoch. `losses`
    holds the mean loss of each epoch.

    Args:
        score: The run's aggregator, fused with the global view.
        residual_scale: Scale of x in training, against text embeddings of length `text_norm`.
        text_norm: Length of the text embeddings for which the scale is meant; 1 for a scale against unit-norm features.
        learning_rate: Initial learning rate of Adam.
        warm_up: Learning rate of the first epoch; None for none.
        epochs: Number of epochs; None for the authors' number.
        batch_size: Images per step.
        seed: Seed of the order of the images.
        plan_epochs: Number of epochs for which a transport plan is held, see `HeldPlans`.
        search: Values of residual_scale to try, see `SelectedAdapter`.
    """

    def __init__(
        self,
        *,
        score: Score,
        residual_scale: Weight,
        text_norm: Positive,
        learning_rate: Weight,
        warm_up: Weight | None,
        epochs: Count | None,
        batch_size: Count,
        seed: Seed,
        plan_epochs: Count = 1,
        search: Search = None,
    ) -> None:
        super().__init__(score=score, search=search, residual_scale=residual_scale)
        self.text_norm, self.warm_up, self.epochs = text_norm, warm_up, epochs
        self.how = partial(Descent, learning_rate, batch_size=batch_size, seed=seed, plan_epochs=plan_epochs)
        self.losses: list[float] = []
        self.residual = nn.Parameter(torch.zeros(len(self.text.prompts), self.text.features.shape[-1]))

    def learn(self, support: Examples) -> None:
        """Train x on the support images."""
        epochs = published_epochs(int(support.labels.bincount().max())) if self.epochs is None else self.epochs
        descent = self.how(epochs=epochs)
        score = HeldPlans(self.score, len(support.labels), descent.plan_epochs)

        def loss(batch: Tensor) -> Tensor:
            text = self.moved_prompts(self.knobs["residual_scale"])
            return F.cross_entropy(score(batch, support.views[batch], text), support.labels[batch])

        optimizer = torch.optim.Adam([self.residual], lr=descent.learning_rate, fused=True)
        self.losses = train(
            loss,
            optimizer,
            n=len(support.labels),
            descent=descent,
            warm_up=self.warm_up,
            checkpoint=self.checkpoint,
            progress=self.progress,
        )

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return the aggregator's logits with the changed prompts as a function of residual_scale; `logits` are those of scale 0."""

        def scored(residual_scale: float | int) -> Logits:
            return with_text(self.score, self.moved_prompts(residual_scale))(views) if residual_scale else logits

        return scored

    def moved_prompts(self, residual_scale: float | int) -> TextBank:
        """Return the prompts with the residual at this scale, unit-norm."""
        return self.text.moved(residual_scale / self.text_norm * self.residual)


def published_epochs(shots: int) -> int:
    """Return the authors' number of epochs."""
    return 100 if shots < 8 else 200
