"""CLIP-Adapter (Gao et al., IJCV 2024): a residual bottleneck on the image features."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.base import Examples, Score, Search, Selected
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views


class ClipAdapter(Selected):
    """The aggregator's logits of views v' = norm(ratio * A(v) + (1 - ratio) * v), with A(v) = ReLU(ReLU(v W1^T) W2^T).

    A has dim / reduction hidden units and no bias. It acts on every view and is trained by cross entropy through the aggregator with Adam
    and cosine decay, at the ratio given; the last epoch is kept and the ratio then chosen on validation images. W1 and W2 start as torch's
    linear layers do, drawn from `seed`: the last ReLU forbids a start at A = 0, which would have no gradient, so that only ratio 0 is
    zero-shot. The authors' v is the raw image embedding; as A(c v) = c A(v) for c > 0, v' is the same for unit v. They augment afresh;
    learning rate and epochs are ours. `losses` holds the mean loss of each epoch. Raises ValueError when ratio is outside 0-1 or
    reduction leaves no channel.
    """

    def __init__(self, *, score: Score, ratio: float | int, reduction: int, search: Search = None, **descent: float | int) -> None:
        super().__init__(score=score, search=search, ratio=ratio)
        dim = self.text.features.shape[-1]
        if max(point["ratio"] for point in self.candidates) > 1 or not 0 <= ratio <= 1 or not 1 <= reduction <= dim:
            raise ValueError(f"adapter.ratio lies in 0-1 and adapter.reduction in 1-{dim}, got {ratio} and {reduction}")
        self.descent, self.losses = Descent(**descent), []
        generator = torch.Generator().manual_seed(self.descent.seed)
        self.down = _layer(dim // reduction, dim, generator)
        self.up = _layer(dim, dim // reduction, generator)

    def learn(self, support: Examples) -> None:
        """Train A on the support images."""
        score = HeldPlans(self.score, len(support.labels), self.descent.plan_epochs)
        ratio = self.knobs["ratio"]

        def loss(batch: Tensor) -> Tensor:
            return F.cross_entropy(score(batch, self.moved(support.views[batch], ratio), self.text), support.labels[batch])

        optimizer = torch.optim.Adam(self.parameters(), lr=self.descent.learning_rate)
        self.losses = train(loss, optimizer, n=len(support.labels), **self.keeping, **self.descent.loop)

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """The aggregator's logits of the changed views; `logits` are those of ratio 0."""
        return lambda ratio: self.score(self.moved(views, ratio)) if ratio else logits

    def moved(self, views: Views, ratio: float | int) -> Views:
        """The views after the bottleneck."""
        residual = F.relu(F.linear(F.relu(F.linear(views, self.down)), self.up))
        return F.normalize(ratio * residual + (1 - ratio) * views, dim=-1)


def _layer(out_dim: int, in_dim: int, generator: torch.Generator) -> nn.Parameter:
    """The weight of a linear layer as torch starts it: uniform within 1 / sqrt(in_dim)."""
    bound = in_dim**-0.5
    return nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound, generator=generator))
