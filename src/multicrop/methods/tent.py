"""Entropy minimisation on features, after Tent (Wang et al., ICLR 2021): an affine map of the text features, trained on the stream."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.base import MAX_ELEMENTS, chunks, entropies
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Count, Weight
from multicrop.methods.base import Method, learning
from multicrop.text import TextBank


class Tent(Method):
    """Compute the aggregator's logits with prompts T' = norm(gamma * T + beta), with gamma and beta (dim) trained online from 1 and 0.

    The loss is the entropy of the logits, minimised by SGD. As in Tent, an image is scored before the step that it takes part in; a step is
    the mean gradient of `images_per_step` images of the stream, independent of the batches of the stream. Images between two steps are
    scored together, up to MAX_ELEMENTS similarities at once.

    Source: after Wang et al., ICLR 2021. Tent adapts the affine parameters of a network's normalisation layers; a feature bank holds
    features, so the affine map of the text features replaces them. That and the learning rate are ours.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        score: The run's aggregator, fused with the global view.
        learning_rate: Learning rate of SGD.
        images_per_step: Images per step, 1 or more.

    Raises:
        ValueError: If images_per_step is below 1. In `forward`, if the aggregator's logits have no gradient.
    """

    episodic: ClassVar[bool] = False
    uses_gradients: ClassVar[bool] = True
    gamma: Tensor
    beta: Tensor
    gamma_gradient: Tensor
    beta_gradient: Tensor
    waiting: Tensor

    def __init__(
        self, *, text: TextBank, logit_scale: float, score: Score, learning_rate: Weight = 0.001, images_per_step: Count = 16
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if images_per_step < 1:
            raise ValueError(f"method.images_per_step is 1 or more, got {images_per_step}")
        self.score, self.learning_rate, self.images_per_step = score, learning_rate, images_per_step
        dim = text.features.shape[-1]
        for name in ("gamma", "beta", "gamma_gradient", "beta_gradient"):
            self.register_buffer(name, text.features.new_zeros(dim))
        self.register_buffer("waiting", torch.tensor(0))
        self.reset()

    def reset(self) -> None:
        """Return to the identity and drop waiting gradients."""
        self.gamma.fill_(1)
        for buffer in (self.beta, self.gamma_gradient, self.beta_gradient, self.waiting):
            buffer.zero_()

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Score the images in order and take the steps that they complete; `logits`, of the unchanged prompts, are not used."""
        scored = []
        while len(views):
            scored.append(self._scored(views[: self.images_per_step - int(self.waiting)]))
            views = views[len(scored[-1]) :]
        return torch.cat(scored)

    def _scored(self, views: Views) -> Logits:
        """Score images between two steps, and take the step if they complete it."""
        parts = chunks(len(views), views.shape[1] * self.text.mask.numel(), MAX_ELEMENTS)
        logits = torch.cat([self._with_gradient(views[part]) for part in parts])
        self.waiting += len(views)
        if self.waiting == self.images_per_step:
            self._step()
        return logits

    def _with_gradient(self, views: Views) -> Logits:
        with learning():
            gamma, beta = (value.clone().requires_grad_() for value in (self.gamma, self.beta))
            logits = with_text(self.score, self._moved(gamma, beta))(views.clone())
            if not logits.requires_grad:
                raise ValueError(
                    "method=tent needs logits with a gradient, and this aggregator's logits have none; "
                    "use another one, such as aggregator=dnd or aggregator=mean_feature"
                )
            gradients = torch.autograd.grad(entropies(logits).sum(), [gamma, beta])
        self.gamma_gradient += gradients[0]
        self.beta_gradient += gradients[1]
        return logits.detach()

    def _step(self) -> None:
        rate = self.learning_rate / self.images_per_step
        self.gamma -= rate * self.gamma_gradient
        self.beta -= rate * self.beta_gradient
        for buffer in (self.gamma_gradient, self.beta_gradient, self.waiting):
            buffer.zero_()

    def _moved(self, gamma: Float[Tensor, " dim"], beta: Float[Tensor, " dim"]) -> TextBank:
        moved = normalize(gamma * self.text.features + beta, dim=-1) * self.text.mask[..., None]
        return TextBank(moved, self.text.mask, self.text.prompts)
