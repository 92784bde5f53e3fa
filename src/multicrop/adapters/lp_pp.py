"""LP++ (Huang et al., CVPR 2024): a linear probe whose class weights blend image prototypes with the text."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.adapters.base import Adapter, Examples, class_sums, pooled
from multicrop.adapters.selection import accuracy
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Count, OneOf, ViewSet

ALPHA_GRADIENTS = ("accumulated", "current")
ALPHA_EVERY = 10  # iterations
AT_ONCE = 512  # images
PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16}
State = tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"], Float[Tensor, " classes"]]


class LpPp(Adapter):
    """Compute f V^T + b + alpha_c t_c, with t the text logits over the logit scale (the cosines f W with the aggregator `global`).

    V starts from the class sums of the N support features F, b from 0, every alpha_c from 250 mean_c mean_i t_ic. Full-batch SGD with
    momentum 0.9 and step 4 N / lambda_max(F^T F) trains V and b; every tenth iteration alpha takes a step of N / (4 max_c sum_i t_ic^2).
    The last of the iterations with the best validation accuracy is kept; if none is as good as the text logits alone, these are
    (iteration 0: V = 0, b = 0, alpha the logit scale). `losses` holds the loss of each iteration.

    Source: Huang et al., CVPR 2024. The authors' b starts from torch's random linear layer. The loop does not use Lightning: one full batch
    and two step rules on three small tensors do not need it.

    Args:
        score: The run's aggregator, fused with the global view.
        alpha_gradient: ``"accumulated"`` is the authors' code, where the gradient of alpha is summed from the first iteration on and never
            set to zero; ``"current"`` is the paper's block descent.
        iterations: Number of iterations.
        view_set: The views whose mean is the feature of an image, ``"all"`` or ``"crops"``.
        products: ``"fp32"`` or ``"bf16"``, the precision of the two matrix products of an iteration; weights, momentum, softmax and
            validation are always fp32.
        patience: Iterations without a higher validation accuracy after which the descent ends; None: all iterations (the authors'). Not
            read without `search`.
        search: ``{"every": n}`` evaluates the validation images every n iterations; without it the last iteration is kept.

    Raises:
        ValueError: If a value is outside its range. In `fit`, if a class has no support image.
    """

    weight: Tensor
    bias: Tensor
    alpha: Tensor

    def __init__(
        self,
        *,
        score: Score,
        alpha_gradient: Annotated[str, OneOf(ALPHA_GRADIENTS)],
        iterations: Count,
        view_set: ViewSet,
        products: Annotated[str, OneOf(tuple(PRODUCTS))] = "fp32",
        patience: Count | None = None,
        search: Mapping[str, Count] | None = None,
    ) -> None:
        super().__init__(text=score.text, logit_scale=score.logit_scale, score=score)
        every = search["every"] if search else iterations
        if alpha_gradient not in ALPHA_GRADIENTS or iterations < 1 or every < 1:
            raise ValueError(
                f"adapter.alpha_gradient is one of {', '.join(ALPHA_GRADIENTS)}, adapter.iterations and adapter.search.every 1 or more, "
                f"got {alpha_gradient!r}, {iterations} and {every}"
            )
        if products not in PRODUCTS:
            raise ValueError(f"adapter.products is one of {', '.join(PRODUCTS)}, got {products!r}")
        self.alpha_gradient, self.iterations, self.view_set, self.products = alpha_gradient, iterations, view_set, PRODUCTS[products]
        self.every, self.fixed, self.patience = every, not search, patience or iterations
        self.losses: list[float] = []
        for name in ("weight", "bias", "alpha"):
            self.register_buffer(name, torch.zeros(0))

    def fit(self, support: Examples, validation: Examples) -> None:
        """Train, and keep the iteration that is best on the validation images."""
        f, t = self._inputs(support.views, support.logits)
        f_val, t_val = self._inputs(validation.views, validation.logits)
        kept = self._zero_shot(f, t)
        chosen = {"iteration": 0, "accuracy": accuracy(validation.logits, validation.labels)}
        curve = [] if self.fixed else [chosen]
        last_rise = 0
        for iteration, state in enumerate(self._descend(f, t, support.labels), 1):
            if iteration % self.every and iteration < self.iterations:
                continue
            point = {"iteration": iteration, "accuracy": accuracy(_logits(f_val, t_val, state), validation.labels)}
            curve.append(point)
            if point["accuracy"] > chosen["accuracy"]:
                last_rise = iteration
            if self.fixed or point["accuracy"] >= chosen["accuracy"]:
                kept, chosen = [x.clone() for x in state], point
            if not self.fixed and iteration - last_rise >= self.patience:
                break
        self.weight, self.bias, self.alpha = kept
        how = "fixed" if self.fixed else "validation"
        self.selection = {"how": how, "images": len(validation.labels), "chosen": chosen, "curve": curve}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Compute the logits of the probe and the weighted text, shape (batch, classes)."""
        return _logits(*self._inputs(views, logits), (self.weight, self.bias, self.alpha))

    def _inputs(self, views: Views, logits: Logits) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n classes"]]:
        return pooled(views, self.view_set), logits / self.logit_scale

    def _zero_shot(self, f: Tensor, t: Tensor) -> State:
        classes = t.shape[1]
        return f.new_zeros(classes, f.shape[1]), f.new_zeros(classes), f.new_full((classes,), float(self.logit_scale))

    def _descend(self, f: Tensor, t: Tensor, labels: Tensor) -> Iterator[State]:
        """The state after each iteration."""
        weight, bias, alpha = state = initial(f, t, labels)
        largest = torch.linalg.eigvalsh((f.T @ f).double())[-1].item()
        optimizer = torch.optim.SGD([weight, bias], 4 * len(f) / largest, momentum=0.9)
        alpha_step = len(f) / (4 * t.square().sum(0).max()).clamp(min=1e-12)
        total, f = torch.zeros_like(alpha), f.to(self.products)
        for iteration in range(1, self.iterations + 1):
            loss, (weight.grad, bias.grad, slope) = slopes(f, t, labels, state)
            total += slope
            optimizer.step()
            self.losses.append(loss)
            if iteration % ALPHA_EVERY == 0:
                alpha -= alpha_step * (total if self.alpha_gradient == "accumulated" else slope)
            yield state


def initial(f: Float[Tensor, "n dim"], t: Float[Tensor, "n classes"], labels: Tensor) -> State:
    """Return the initial state: class sums (classes, dim), zero bias (classes,), and one alpha for all classes (classes,)."""
    n_classes = t.shape[1]
    sums, count = class_sums(f, labels, n_classes)
    own = torch.zeros(n_classes).to(t).index_add(0, labels, t.gather(1, labels[:, None])[:, 0])
    alpha = 250 * (own / count[:, 0]).mean()
    return sums.clone(), torch.zeros(n_classes).to(f), alpha.repeat(n_classes)


def slopes(f: Float[Tensor, "n dim"], t: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], state: State) -> tuple[float, State]:
    """Return the mean cross entropy in nats and its gradients with respect to the state.

    The images are processed in parts whose logits fit into the processor's cache. Products are in the precision of `f`; sums over the parts
    are in the precision of the state.
    """
    loss, (by_weight, by_bias, by_alpha) = 0.0, (torch.zeros_like(x) for x in state)
    for features, text, label in zip(f.split(AT_ONCE), t.split(AT_ONCE), labels[:, None].split(AT_ONCE), strict=True):
        error = _logits(features, text, state).log_softmax(1)
        loss -= error.gather(1, label).sum().item()
        error.exp_().scatter_add_(1, label, error.new_full(label.shape, -1.0))
        by_weight += error.T.to(f) @ features
        by_bias += error.sum(0)
        by_alpha += error.mul_(text).sum(0)
    return loss / len(f), (by_weight / len(f), by_bias / len(f), by_alpha / len(f))


def _logits(f: Tensor, t: Tensor, state: State) -> Logits:
    weight, bias, alpha = state
    return (f @ weight.T.to(f)).to(t).add_(bias).addcmul_(alpha, t)
