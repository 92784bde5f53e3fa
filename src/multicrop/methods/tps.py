"""TPS (arXiv 2403.12952): for each image the prompts of each class are shifted by one vector, so that the confident views agree."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.base import MAX_ELEMENTS, chunks, entropies
from multicrop.aggregators.confidence import kept_views
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Share, Weight
from multicrop.methods.base import Method
from multicrop.text import TextBank

EPSILON = 1e-8  # of AdamW


class Tps(Method):
    """Compute the aggregator's logits with prompts unit(T_cm + shift_c), the shifts after one AdamW step from 0 on the loss of TPT.

    The loss is the entropy of the mean probability of the most confident views against the label prompts, and its gradient is computed in
    closed form. The first step of AdamW moves every coordinate by the learning rate, whatever the size of its gradient, so that the shift
    of a class has norm learning_rate sqrt(D) and coordinates without evidence follow rounding.

    Source: TPS, arXiv 2403.12952, after the authors' code. With aggregator=global the global view decides, as there.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        score: The run's aggregator, fused with the global view.
        share: Share of the views, lowest entropy first, in the loss.
        learning_rate: Learning rate of AdamW.
        per_class: Whether each class has a shift of its own; false: one for all classes.
    """

    episodic: ClassVar[bool] = True

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        share: Share = 0.1,
        learning_rate: Weight = 0.005,
        per_class: bool = True,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        self.score, self.share, self.learning_rate, self.per_class = score, share, learning_rate, per_class

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Shift the prompts for each image and score it with them; `logits`, of the unchanged prompts, are not used."""
        parts = chunks(len(views), self.text.label.numel(), MAX_ELEMENTS)
        return torch.cat([self._scored(views[part]) for part in parts])

    def _scored(self, views: Views) -> Logits:
        gradient = self._gradient(self._confident(views))
        if not self.per_class:
            gradient = gradient.sum(1, keepdim=True).expand_as(gradient)
        shifts = -self.learning_rate * gradient / (gradient.abs() + EPSILON)
        images = zip(views, shifts, strict=True)
        return torch.cat([with_text(self.score, self.text.moved(shift))(image[None]) for image, shift in images])

    def _confident(self, views: Views) -> Float[Tensor, "batch kept dim"]:
        order = entropies(self.view_logits(views)).argsort(dim=1, stable=True)[:, : kept_views(views.shape[1], self.share)]
        return views.gather(1, order[..., None].expand(-1, -1, views.shape[2]))

    def _gradient(self, views: Float[Tensor, "batch kept dim"]) -> Float[Tensor, "batch classes dim"]:
        """The gradient of the entropy of the mean probability with respect to the shift of each class, at 0.

        Probabilities are in float64: where they round to 0 or 1, a gradient would have the wrong sign, and a coordinate would move by the
        whole learning rate in the wrong direction.
        """
        label = self.text.label
        log_p = (self.logit_scale * views.double() @ label.double().T).log_softmax(2)
        log_mean = (log_p.logsumexp(1) - math.log(views.shape[1]))[:, None]
        p = log_p.exp()
        of_logits = -p / views.shape[1] * (log_mean - (p * log_mean).sum(2, keepdim=True))
        toward = of_logits.to(views.dtype).transpose(1, 2) @ views
        return self.logit_scale * (toward - (toward * label).sum(2, keepdim=True) * label)
