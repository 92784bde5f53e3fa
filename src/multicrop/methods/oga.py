"""OGA (CVPR workshops 2025): a Gaussian likelihood from a cache of confident test images, multiplied with the text probabilities."""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.config.ranges import Count, KeyViews, OneOf, Weight
from multicrop.methods.base import OneKeyMethod
from multicrop.methods.queues import insert
from multicrop.text import TextBank

MEANS = ("slots", "filled")
INVERTED_BELOW = 4  # times the dimension: fewer cached images than that have their covariance shrunk to the identity
SMALLEST_PIVOT = 1e-10  # relative; a covariance with a smaller one is singular


class Oga(OneKeyMethod):
    """Compute log of y * softmax(tau d), normalised, with y the text probabilities and d_c = -(f - mu_c)^T Lambda (f - mu_c) / 2.

    The cache holds the `size` images of each predicted class with the lowest entropy; an image enters before it is scored, in place of the
    entry with the highest entropy (ln C while a slot is empty) if its own is strictly lower. mu_c is the label prompt until two images of
    the class are in the cache, then their mean. Lambda is D I until a class has three images, then from the covariance M of all n cached
    images about their class means: D ((n - 1) M + tr(M) I)^-1 up to n = 4 D, the pseudo-inverse of M beyond.

    The scatter of the cached images is kept up to date in float64 by the class that changes, so that an insertion costs D^3 + C D^2
    operations and no pass over the cache.

    Source: OGA, CVPR workshops 2025, after the authors' code: one setting for all data sets. They insert and fit a batch of 32 before
    they score it, and store the cache in half precision; here it is one image at a time.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        view_set: The views whose mean is f, ``"global"``, ``"all"`` or ``"crops"``.
        size: Images per class.
        tau: Weight of the logarithm of the likelihood.
        mean: What the sum of a class's cached images is divided by: ``"slots"``, their largest number (the authors' code), or ``"filled"``,
            their number.

    Raises:
        ValueError: If `mean` is neither.
    """

    memory: Tensor
    entropies: Tensor
    means: Tensor
    precision: Tensor
    scatter: Tensor
    total: Tensor
    quadratic: Tensor

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        view_set: KeyViews = "all",
        size: Count = 8,
        tau: Weight = 0.05,
        mean: Annotated[str, OneOf(MEANS)] = "slots",
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if mean not in MEANS:
            raise ValueError(f"method.mean is slots or filled, got {mean!r}")
        self.view_set, self.tau, self.mean = view_set, tau, mean
        label = text.label
        n_classes, dim = label.shape
        self.register_buffer("memory", label.new_empty(n_classes, size, dim))
        self.register_buffer("entropies", label.new_empty(n_classes, size))
        self.register_buffer("means", label.new_empty(n_classes, dim))
        self.register_buffer("precision", label.new_empty(dim, dim))
        self.register_buffer("quadratic", label.new_empty(n_classes))  # mu_c^T Lambda mu_c / 2
        self.register_buffer("scatter", label.new_empty(dim, dim, dtype=torch.float64))  # of the cached images about their class means
        self.register_buffer("total", label.new_empty(dim, dtype=torch.float64))  # the sum of these differences
        self.reset()

    def reset(self) -> None:
        """Empty the cache; means and covariance return to label prompts and identity."""
        for buffer in (self.memory, self.precision, self.scatter, self.total):
            buffer.zero_()
        self.entropies.fill_(math.log(len(self.means)))
        self.means.copy_(self.text.label)
        self.precision.fill_diagonal_(len(self.precision))
        self.quadratic.copy_(self._quadratic())

    def one(self, key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        """Insert an image into the cache, then score it."""
        probability = logits.softmax(0)
        self._insert(key, int(logits.argmax()), -(probability * (probability + 1e-9).log()).sum())
        likelihood = self.means @ (self.precision @ key) - self.quadratic  # without the term of f alone, which no class changes
        return (logits + self.tau * likelihood).log_softmax(0)

    @property
    def _filled(self) -> Tensor:
        return self.entropies < self.entropies.new_tensor(math.log(len(self.means)))

    def _quadratic(self) -> Float[Tensor, " classes"]:
        return ((self.means @ self.precision) * self.means).sum(1) / 2

    def _insert(self, key: Float[Tensor, " dim"], label: int, nats: Float[Tensor, ""]) -> None:
        before = self._differences(label)
        if insert(self.memory[label], self.entropies[label], key, nats) is None:
            return
        filled = int(self._filled[label].sum())
        if filled > 1:
            divisor = self.memory.shape[1] if self.mean == "slots" else filled
            self.means[label] = self.memory[label].sum(0) / divisor
        after = self._differences(label)
        self.scatter += after.T @ after - before.T @ before
        self.total += after.sum(0) - before.sum(0)
        self._fit()

    def _differences(self, label: int) -> Float[Tensor, "filled dim"]:
        """The cached images of a class less its mean."""
        return (self.memory[label][self._filled[label]] - self.means[label]).double()

    def _fit(self) -> None:
        filled = self._filled.sum(1)
        if int(filled.max()) > 2:
            n, dim = int(filled.sum()), len(self.precision)
            scatter = self.scatter - torch.outer(self.total, self.total) / n
            if n <= INVERTED_BELOW * dim:
                scatter.diagonal().add_(scatter.trace() / (n - 1))
                self.precision.copy_(dim * inverse(scatter))
            else:
                self.precision.copy_(inverse(scatter / (n - 1)))
        self.quadratic.copy_(self._quadratic())


def inverse(matrix: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """The inverse of a positive definite matrix, the pseudo-inverse of one that is only semidefinite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    if bool(failed) or not bool(pivots.min() > SMALLEST_PIVOT * pivots.max()):
        return torch.linalg.pinv(matrix, hermitian=True)
    return torch.cholesky_inverse(factor)
