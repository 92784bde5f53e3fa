"""CLIP-Adapter (Gao et al., IJCV 2024): a residual bottleneck on the image features."""

import torch
from torch import nn
from torch.nn import functional as F

from multicrop.adapters.base import Adapter, Examples, Score, accuracy
from multicrop.adapters.training import train
from multicrop.aggregators import Logits, Views
from multicrop.prompts import TextBank


class ClipAdapter(Adapter):
    """The aggregator's logits of views v' = norm(ratio * A(v) + (1 - ratio) * v), with A(v) = ReLU(ReLU(v W1^T) W2^T).

    A has dim / reduction hidden units and no bias. It acts on every view and is trained by cross entropy through the aggregator with Adam
    and cosine decay; the last epoch is kept. W1 and W2 start as torch's linear layers do, drawn from `seed`: the last ReLU forbids a start
    at A = 0, which would have no gradient, so that only ratio 0 is zero-shot. The authors' v is the raw image embedding; as A(c v) = c A(v)
    for c > 0, v' is the same for unit v. They augment afresh; learning rate and epochs are ours. `losses` holds the mean loss of each
    epoch. Plain loop: see `training`. Raises ValueError when ratio is outside 0-1 or reduction leaves no channel.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        ratio: float,
        reduction: int,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score)
        dim = text.features.shape[-1]
        if not 0 <= ratio <= 1 or not 1 <= reduction <= dim:
            raise ValueError(f"adapter.ratio lies in 0-1 and adapter.reduction in 1-{dim}, got {ratio} and {reduction}")
        self.ratio, self.learning_rate, self.epochs, self.batch_size, self.seed = ratio, learning_rate, epochs, batch_size, seed
        generator = torch.Generator().manual_seed(seed)
        self.down = _layer(dim // reduction, dim, generator)
        self.up = _layer(dim, dim // reduction, generator)
        self.losses: list[float] = []

    def fit(self, support: Examples, validation: Examples) -> None:
        """Train A on the support images; the validation images only report."""
        self.losses = train(
            lambda batch: F.cross_entropy(self.score(self.moved(support.views[batch])), support.labels[batch]),
            torch.optim.Adam(self.parameters(), lr=self.learning_rate),
            n=len(support.labels),
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        with torch.no_grad():
            chosen = {"epoch": self.epochs, "accuracy": accuracy(self.score(self.moved(validation.views)), validation.labels)}
        self.selection = {"how": "fixed", "images": len(validation.labels), "chosen": chosen, "curve": [chosen]}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The aggregator's logits of the changed views; `logits`, made of the old ones, are not read."""
        return self.score(self.moved(views))

    def moved(self, views: Views) -> Views:
        """The views after the bottleneck."""
        residual = F.relu(F.linear(F.relu(F.linear(views, self.down)), self.up))
        return F.normalize(self.ratio * residual + (1 - self.ratio) * views, dim=-1)


def _layer(out_dim: int, in_dim: int, generator: torch.Generator) -> nn.Parameter:
    """The weight of a linear layer as torch starts it: uniform within 1 / sqrt(in_dim)."""
    bound = in_dim**-0.5
    return nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound, generator=generator))
