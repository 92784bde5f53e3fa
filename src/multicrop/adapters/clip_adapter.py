"""CLIP-Adapter (Gao et al., IJCV 2024): a residual bottleneck on the image features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.base import Examples
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Count, Fraction, Seed, Weight


class ClipAdapter(SelectedAdapter):
    """Compute the aggregator's logits of views v' = norm(ratio * A(v) + (1 - ratio) * v), with A(v) = ReLU(ReLU(v W1^T) W2^T).

    Source: Gao et al., IJCV 2024. A has dim / reduction hidden units and no bias, and acts on every view. It is trained by cross entropy
    through the aggregator with Adam and cosine decay; the last epoch is kept and the ratio is then selected on validation images. W1 and
    W2 start as torch's linear layers do; A = 0 would have no gradient because of the last ReLU, so only ratio 0 is zero-shot. The authors'
    v is the raw image embedding; as A(c v) = c A(v) for c > 0, v' is the same for unit-norm v. They draw a new augmentation per epoch.
    Learning rate and epochs are ours. `losses` holds the mean loss of each epoch.

    Args:
        score: The run's aggregator, fused with the global view.
        ratio: Weight of A(v) in training, in 0-1.
        reduction: Divisor of the feature dimension that gives the number of hidden units, from 1 to dim.
        learning_rate: Initial learning rate of Adam.
        epochs: Number of epochs.
        batch_size: Images per step.
        seed: Seed of W1 and W2 and of the order of the images.
        plan_epochs: Number of epochs for which a transport plan is held, see `HeldPlans`.
        search: Values of ratio to try, see `SelectedAdapter`.

    Raises:
        ValueError: If a ratio lies outside 0-1 or reduction outside 1-dim.
    """

    def __init__(
        self,
        *,
        score: Score,
        ratio: Fraction,
        reduction: Count,
        learning_rate: Weight,
        epochs: Count,
        batch_size: Count,
        seed: Seed,
        plan_epochs: Count = 1,
        search: Search = None,
    ) -> None:
        super().__init__(score=score, search=search, ratio=ratio)
        dim = self.text.features.shape[-1]
        if max(point["ratio"] for point in self.candidates) > 1 or not 0 <= ratio <= 1 or not 1 <= reduction <= dim:
            raise ValueError(f"adapter.ratio lies in 0-1 and adapter.reduction in 1-{dim}, got {ratio} and {reduction}")
        self.descent = Descent(learning_rate, epochs, batch_size, seed, plan_epochs)
        self.losses: list[float] = []
        generator = torch.Generator().manual_seed(seed)
        self.down = _layer(dim // reduction, dim, generator)
        self.up = _layer(dim, dim // reduction, generator)

    @property
    def class_free(self) -> bool:
        """True: the bottleneck is of no class."""
        return True

    def learn(self, support: Examples) -> None:
        """Train A on the support images."""
        score = HeldPlans(self.score, len(support.labels), self.descent.plan_epochs)
        ratio = self.knobs["ratio"]

        def loss(batch: Tensor) -> Tensor:
            return F.cross_entropy(score(batch, self.moved(support.views[batch], ratio), self.text), support.labels[batch])

        optimizer = torch.optim.Adam(self.parameters(), lr=self.descent.learning_rate, fused=True)
        self.losses = train(
            loss, optimizer, n=len(support.labels), descent=self.descent, checkpoint=self.checkpoint, progress=self.progress
        )

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return the aggregator's logits of the changed views as a function of ratio; `logits` are those of ratio 0."""
        return lambda ratio: self.score(self.moved(views, ratio)) if ratio else logits

    def moved(self, views: Views, ratio: float | int) -> Views:
        """Return the views after the bottleneck, unit-norm, in the shape of `views`."""
        residual = F.relu(F.linear(F.relu(F.linear(views, self.down)), self.up))
        return F.normalize(ratio * residual + (1 - ratio) * views, dim=-1)


def _layer(out_dim: int, in_dim: int, generator: torch.Generator) -> nn.Parameter:
    """The weight of a linear layer as torch initialises it: uniform within 1 / sqrt(in_dim)."""
    bound = in_dim**-0.5
    return nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound, generator=generator))
