"""GDA-CLIP (Wang et al., ICLR 2024): Gaussian discriminant analysis of the support features beside the text logits."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.adapters.base import Adapter, Examples, Score, class_sums, pooled, samples, select
from multicrop.aggregators import Logits, Views
from multicrop.prompts import TextBank


class Gda(Adapter):
    """logits + alpha (f W + b): classes are Gaussians of one covariance, with equal priors.

    P = D pinv((n - 1) Sigma + tr(Sigma) I), w_c = P mu_c, b_c = -log C - mu_c^T P mu_c / 2, with Sigma the unbiased (D, D) covariance of
    the n samples about their class means mu. A sample is a single view of a support image (`samples: views`, in place of the authors' ten
    augmentations) or the pooled image (`images`); queries are pooled. alpha is chosen on validation images, which for ImageNet are the
    authors' test images. Sums are in double precision, where the authors' are single. Raises ValueError when all samples lie on their class
    means.
    """

    def __init__(self, *, text: TextBank, logit_scale: float, score: Score, alphas: Sequence[float], view_set: str, samples: str) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score)
        if not alphas or min(alphas) < 0:
            raise ValueError(f"adapter.alphas is a list of weights >= 0, got {list(alphas)}")
        self.alphas, self.view_set, self.samples, self.alpha = list(alphas), view_set, samples, alphas[0]
        self.register_buffer("weight", torch.zeros(0, 0))
        self.register_buffer("bias", torch.zeros(0))

    def fit(self, support: Examples, validation: Examples) -> None:
        """Class means, the shared precision, and alpha."""
        features, labels = samples(support, self.view_set, self.samples)
        x = features.double()
        sums, count = class_sums(x, labels, support.logits.shape[1])
        means = sums / count
        weight = means @ precision(x - means[labels])
        bias = -math.log(len(means)) - (weight * means).sum(1) / 2
        self.weight, self.bias = weight.to(features), bias.to(features)
        grid = [{"alpha": alpha} for alpha in self.alphas]
        self.selection = select(grid, lambda alpha: self.adapted(validation.views, validation.logits, alpha), validation)
        self.alpha = self.selection["chosen"]["alpha"]

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Text logits plus the discriminants', at the chosen alpha."""
        return self.adapted(views, logits, self.alpha)

    def adapted(self, views: Views, logits: Logits, alpha: float) -> Logits:
        """Text logits plus the discriminants', at any alpha."""
        return logits + alpha * (pooled(views, self.view_set) @ self.weight.T + self.bias)


def precision(centred: Float[Tensor, "n dim"]) -> Float[Tensor, "dim dim"]:
    """The Kubokawa-Srivastava estimate of the inverse covariance: D pinv((n - 1) Sigma + tr(Sigma) I)."""
    n, dim = centred.shape
    scatter = centred.T @ centred
    trace = scatter.trace() / max(n - 1, 1)
    if trace < 1e-12:
        raise ValueError(
            f"gda cannot estimate a covariance: the {n} support samples lie on their class means. Raise task.shots, use a crop policy with "
            "crops and adapter.samples=views, or adapter=tip_adapter"
        )
    return dim * torch.linalg.pinv(scatter + trace * torch.eye(dim).to(scatter), hermitian=True)
