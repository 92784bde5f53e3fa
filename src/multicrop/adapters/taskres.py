"""TaskRes (Yu et al., CVPR 2023): a learned residual on the class's text features."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.base import Examples
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Count, Seed, Weight
from multicrop.text import TextBank


class TaskRes(SelectedAdapter):
    """Compute the aggregator's logits with prompts T'_cm = norm(T_cm + residual_scale * x_c), with x (classes, dim) learned from 0.

    Source: Yu et al., CVPR 2023. x is trained by cross entropy through the aggregator with Adam and cosine decay; the last epoch is kept
    (the authors train 100 epochs, 200 from 8 shots on) and the scale is then selected on validation images. The authors have one prompt
    per class; here all prompts of a class share its x. Their T is the raw text embedding with a norm of about 10 (CLIP), ours is unit-norm,
    so their scale 0.5 is 0.05 here. They also warm up for one epoch and draw a new augmentation per epoch. `losses` holds the mean loss of
    each epoch.

    Args:
        score: The run's aggregator, fused with the global view.
        residual_scale: Scale of x in training.
        learning_rate: Initial learning rate of Adam.
        epochs: Number of epochs.
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
        learning_rate: Weight,
        epochs: Count,
        batch_size: Count,
        seed: Seed,
        plan_epochs: Count = 1,
        search: Search = None,
    ) -> None:
        super().__init__(score=score, search=search, residual_scale=residual_scale)
        self.descent = Descent(learning_rate, epochs, batch_size, seed, plan_epochs)
        self.losses: list[float] = []
        self.residual = nn.Parameter(torch.zeros(len(self.text.prompts), self.text.features.shape[-1]))

    def learn(self, support: Examples) -> None:
        """Train x on the support images."""
        score = HeldPlans(self.score, len(support.labels), self.descent.plan_epochs)

        def loss(batch: Tensor) -> Tensor:
            text = moved(self.text, self.knobs["residual_scale"] * self.residual)
            return F.cross_entropy(score(batch, support.views[batch], text), support.labels[batch])

        optimizer = torch.optim.Adam([self.residual], lr=self.descent.learning_rate)
        self.losses = train(
            loss, optimizer, n=len(support.labels), descent=self.descent, checkpoint=self.checkpoint, progress=self.progress
        )

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return the aggregator's logits with the changed prompts as a function of residual_scale; `logits` are those of scale 0."""

        def scored(residual_scale: float | int) -> Logits:
            return with_text(self.score, moved(self.text, residual_scale * self.residual))(views) if residual_scale else logits

        return scored


def moved(text: TextBank, step: Float[Tensor, "classes dim"]) -> TextBank:
    """Return the text bank with each class's step added to all its prompts, unit-norm again; padding stays 0."""
    return TextBank(F.normalize(text.features + step[:, None], dim=-1) * text.mask[..., None], text.mask, text.prompts)
