"""GDA-CLIP (Wang et al., ICLR 2024): Gaussian discriminant analysis of the support features beside the text logits."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.adapters.base import Examples, class_sums, pooled, samples
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Samples, ViewSet, Weight


class Gda(SelectedAdapter):
    """Compute logits + alpha (f W + b), where classes are Gaussians with a shared covariance and equal priors.

    P = D pinv((n - 1) Sigma + tr(Sigma) I), w_c = P mu_c, b_c = -log C - mu_c^T P mu_c / 2, with Sigma the unbiased (D, D) covariance of
    the n samples about their class means mu.

    Source: Wang et al., ICLR 2024. alpha is selected on validation images, which for ImageNet are the authors' test images. Sums are in
    double precision, where the authors' are in single precision.

    Args:
        score: The run's aggregator, fused with the global view.
        alpha: Weight of the discriminants.
        view_set: The views that are samples, and whose mean is the query, ``"all"`` or ``"crops"``.
        samples: ``"views"``: a sample is a single view, in place of the authors' ten augmentations. ``"images"``: a pooled image.
        search: Values of alpha to try, see `SelectedAdapter`.

    Raises:
        ValueError: In `fit`, if a class has no sample, all samples lie on their class means, or `samples` is neither.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, *, score: Score, alpha: Weight, view_set: ViewSet, samples: Samples, search: Search = None) -> None:
        super().__init__(score=score, search=search, alpha=alpha)
        self.view_set, self.samples = view_set, samples
        self.register_buffer("weight", torch.zeros(0, 0))
        self.register_buffer("bias", torch.zeros(0))

    def learn(self, support: Examples) -> None:
        """Estimate the class means and the shared precision matrix."""
        features, labels = samples(support, self.view_set, self.samples)
        self.weight, self.bias = discriminants(features, labels, support.logits.shape[1])

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return text logits plus discriminants as a function of alpha."""
        discriminants = pooled(views, self.view_set) @ self.weight.T + self.bias
        return lambda alpha: logits + alpha * discriminants


def discriminants(
    features: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], n_classes: int
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Estimate the linear discriminants of Gaussians with a shared covariance and equal priors.

    Args:
        features: Samples, shape (n, dim).
        labels: Class positions, shape (n,).
        n_classes: Number of classes.

    Returns:
        Weights, shape (classes, dim), and biases, shape (classes,), in the precision of the features.

    Raises:
        ValueError: If a class has no sample, or all samples lie on their class means.
    """
    x = features.double()
    sums, count = class_sums(x, labels, n_classes)
    means = sums / count
    weight = means @ precision(x - means[labels])
    bias = -math.log(n_classes) - (weight * means).sum(1) / 2
    return weight.to(features), bias.to(features)


def precision(centred: Float[Tensor, "n dim"]) -> Float[Tensor, "dim dim"]:
    """Estimate the precision matrix D pinv((n - 1) Sigma + tr(Sigma) I), after Kubokawa and Srivastava.

    Args:
        centred: Samples less their class means, shape (n, dim).

    Returns:
        The matrix, shape (dim, dim).

    Raises:
        ValueError: If all samples are 0.
    """
    n, dim = centred.shape
    scatter = centred.T @ centred
    trace = scatter.trace() / max(n - 1, 1)
    if trace < 1e-12:
        raise ValueError(
            f"gda cannot estimate a covariance: the {n} support samples lie on their class means. Raise task.shots, use a crop policy with "
            "crops and adapter.samples=views, or adapter=tip_adapter"
        )
    return dim * torch.linalg.pinv(scatter + trace * torch.eye(dim).to(scatter), hermitian=True)
