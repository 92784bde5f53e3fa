"""Linear probe with text features as extra samples (cross-modal adaptation, Lin et al., CVPR 2023)."""

from collections.abc import Sequence

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from multicrop.adapters.base import Adapter, Examples, Score, class_sums, pooled, select
from multicrop.aggregators import Logits, Views
from multicrop.prompts import TextBank


class LinearProbe(Adapter):
    """text_weight * logits + f W^T + b, with (W, b) the multinomial logistic regression of the support images.

    min over W, b of |W|^2 / 2 + c * sum_i -log softmax(f_i W^T + b)[y_i], solved by scikit-learn; i runs over the pooled support images
    and, each as one more sample of its class, the prompts of `text_set` (`none`: images only). The objective is convex, so the authors'
    start at the zero-shot weights would end at the same place; they stop gradient descent early and have no b. text_weight 0 is the bare
    probe; the other values let the aggregator's logits vote. c (`inverse_penalties`) and text_weight are chosen together on validation
    images. Raises ValueError when a class has neither image nor prompt.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        inverse_penalties: Sequence[float],
        text_weights: Sequence[float],
        text_set: str,
        view_set: str,
        max_iterations: int,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score)
        if not inverse_penalties or not text_weights or min(inverse_penalties) <= 0 or min(text_weights) < 0:
            raise ValueError(
                "linear_probe wants adapter.inverse_penalties > 0 and adapter.text_weights >= 0, "
                f"got {list(inverse_penalties)} and {list(text_weights)}"
            )
        self.inverse_penalties, self.text_weights = list(inverse_penalties), list(text_weights)
        self.text_set, self.view_set, self.max_iterations, self.text_weight = text_set, view_set, max_iterations, self.text_weights[0]
        self.register_buffer("weight", torch.zeros(0, 0))
        self.register_buffer("bias", torch.zeros(0))

    def fit(self, support: Examples, validation: Examples) -> None:
        """One regression a penalty; keep the best with its text weight."""
        x, y = self._samples(support)
        class_sums(x, y, support.logits.shape[1])
        probes = {c: self._regress(x, y, c) for c in self.inverse_penalties}
        grid = [{"inverse_penalty": c, "text_weight": w} for c in self.inverse_penalties for w in self.text_weights]
        f = pooled(validation.views, self.view_set)
        self.selection = select(
            grid, lambda inverse_penalty, text_weight: text_weight * validation.logits + _linear(f, *probes[inverse_penalty]), validation
        )
        self.weight, self.bias = probes[self.selection["chosen"]["inverse_penalty"]]
        self.text_weight = self.selection["chosen"]["text_weight"]

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The probe's logits and the weighted text's."""
        return self.text_weight * logits + _linear(pooled(views, self.view_set), self.weight, self.bias)

    def _samples(self, support: Examples) -> tuple[Tensor, Tensor]:
        """Pooled images, then prompts, and their labels."""
        x = pooled(support.views, self.view_set)
        if self.text_set == "none":
            return x, support.labels
        text = self.text.select(self.text_set)
        return torch.cat([x, text.features[text.mask]]), torch.cat([support.labels, text.mask.nonzero()[:, 0]])

    def _regress(self, x: Tensor, y: Tensor, inverse_penalty: float) -> tuple[Tensor, Tensor]:
        """Weights (classes, dim) and bias (classes).

        For two classes scikit-learn fits one row d, the difference of two opposite rows d / 2. Their penalty is |d|^2 / 4, half of its own.
        """
        c = inverse_penalty * (2 if y.max() == 1 else 1)
        probe = LogisticRegression(C=c, max_iter=self.max_iterations, tol=1e-6).fit(x.double().numpy(), y.numpy())
        weight, bias = torch.from_numpy(probe.coef_).to(x), torch.from_numpy(probe.intercept_).to(x)
        return (torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2) if len(weight) == 1 else (weight, bias)


def _linear(f: Tensor, weight: Tensor, bias: Tensor) -> Logits:
    return f @ weight.T + bias
