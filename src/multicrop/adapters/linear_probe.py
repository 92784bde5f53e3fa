"""Linear probe with text features as extra samples (cross-modal adaptation, Lin et al., CVPR 2023)."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from multicrop.adapters.base import Examples, class_sums, pooled
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Count, Fraction, OneOf, ViewSet, Weight

SampleTexts = Annotated[str, OneOf(("none", "label", "descriptions", "local", "global", "both", "all"))]


class LinearProbe(SelectedAdapter):
    """Compute (1 - share) * logits + share * (f W^T + b), with (W, b) the multinomial logistic regression of the support images.

    The regression is min over W, b of |W|^2 / 2 + c * sum_i -log softmax(f_i W^T + b)[y_i], solved by scikit-learn; i runs over the pooled
    support images and over the prompts of `text_set`, each an additional sample of its class.

    Source: Lin et al., CVPR 2023. The objective is convex, so the authors' start at the zero-shot weights would lead to the same solution;
    they stop gradient descent early and have no b. c and share are selected together on validation images.

    Args:
        score: The run's aggregator, fused with the global view.
        inverse_penalty: c, scikit-learn's C, above 0.
        share: Weight of the probe in 0-1: 1 is the probe alone, 0 the aggregator.
        text_set: The prompts that are samples, ``"label"``, ``"descriptions"``, ``"all"`` or ``"none"`` (images only).
        view_set: The views whose mean is the feature of an image, ``"all"`` or ``"crops"``.
        max_iterations: Iterations of scikit-learn's solver.
        search: Values of inverse_penalty and share to try, see `SelectedAdapter`.

    Raises:
        ValueError: If a penalty is 0 or a share above 1. In `fit`, if a class has neither image nor prompt.
    """

    def __init__(
        self,
        *,
        score: Score,
        inverse_penalty: Weight,
        share: Fraction,
        text_set: SampleTexts,
        view_set: ViewSet,
        max_iterations: Count,
        search: Search = None,
    ) -> None:
        super().__init__(score=score, search=search, inverse_penalty=inverse_penalty, share=share)
        if any(point["inverse_penalty"] == 0 or point["share"] > 1 for point in self.candidates):
            raise ValueError(
                "adapter.inverse_penalty is above 0 and adapter.share lies in 0-1, in adapter.search too, "
                f"got {inverse_penalty}, {share} and {dict(search or {})}"
            )
        self.text_set, self.view_set, self.max_iterations = text_set, view_set, max_iterations
        self.probes: dict[float | int, tuple[Tensor, Tensor]] = {}

    def learn(self, support: Examples) -> None:
        """Fit one regression for each penalty among the candidates."""
        x, y = self._samples(support)
        class_sums(x, y, support.logits.shape[1])
        regression = LogisticRegression(max_iter=self.max_iterations, warm_start=True)  # from the penalty before
        self.probes = {c: _regress(regression, x, y, c) for c in sorted({point["inverse_penalty"] for point in self.candidates})}

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return the blend of the aggregator's logits and the probe's as a function of inverse_penalty and share."""
        f = pooled(views, self.view_set)

        def blended(inverse_penalty: float | int, share: float | int) -> Logits:
            weight, bias = self.probes[inverse_penalty]
            return (1 - share) * logits + share * (f @ weight.T + bias)

        return blended

    def learned_tensors(self) -> dict[str, Tensor]:
        """Return weight and bias of the probe with the selected penalty."""
        weight, bias = self.probes[self.knobs["inverse_penalty"]]
        return {"weight": weight, "bias": bias}

    def restore(self, learned: Mapping[str, Tensor], chosen: Mapping[str, float | int]) -> None:
        """Take the place of a fit; only the selected probe is there."""
        super().restore({}, chosen)
        self.probes = {self.knobs["inverse_penalty"]: (learned["weight"], learned["bias"])}

    def _samples(self, support: Examples) -> tuple[Tensor, Tensor]:
        """Pooled images, then prompts, and their labels."""
        x = pooled(support.views, self.view_set)
        if self.text_set == "none":
            return x, support.labels
        text = self.text.select(self.text_set)
        return torch.cat([x, text.features[text.mask]]), torch.cat([support.labels, text.mask.nonzero()[:, 0]])


def _regress(regression: LogisticRegression, x: Tensor, y: Tensor, inverse_penalty: float | int) -> tuple[Tensor, Tensor]:
    """Weights (classes, dim) and bias (classes).

    For two classes scikit-learn fits one row d, the difference of two opposite rows d / 2. Their penalty is |d|^2 / 4, half of its own.
    """
    c = inverse_penalty * (2 if y.max() == 1 else 1)
    probe = regression.set_params(C=c).fit(x.double().numpy(), y.numpy())
    weight, bias = torch.from_numpy(probe.coef_.copy()).to(x), torch.from_numpy(probe.intercept_.copy()).to(x)
    return (torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2) if len(weight) == 1 else (weight, bias)
