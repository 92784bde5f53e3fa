"""RLA, the regularised linear adapter (Fahes et al., arXiv 2410.05270): a linear map of the image features, held near the identity."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from multicrop.adapters.base import Examples
from multicrop.adapters.descent import descend
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Count, Samples, Weight


class Rla(SelectedAdapter):
    """Compute the aggregator's logits of views v' = norm(A v), with A (dim, dim) trained from the identity I.

    The loss is the cross entropy through the aggregator plus penalty * |A - I|^2, the sum of squares of all entries. Adam (eps 1e-4) takes
    full-batch steps with cosine decay; the last step is kept. At prediction A is I + strength (A - I). `losses` holds the loss of each
    step.

    Source: Fahes et al., arXiv 2410.05270 (beside ProLIP). As there, the penalty is 1 / shots, and step t uses view t + 1 of each image
    (``samples="views"``), where the authors have 300 augmented views and here the views are those of the bank. norm(A v) does not depend on
    the length of v, so unit-norm features give the numbers of the authors' raw ones. `strength` is ours; 1 is the authors'.

    Args:
        score: The run's aggregator, fused with the global view.
        strength: Share of the learned change, 0 for none.
        penalty: Weight of the squared distance of A from I; None for 1 / shots of the largest class.
        samples: ``"images"``: a step scores all views of an image together. ``"views"``: one view per image, by turns, each alone.
        learning_rate: Initial learning rate of Adam.
        steps: Number of steps.
        plan_epochs: Number of steps for which a transport plan is held, see `HeldPlans`.
        search: Values of strength to try, see `SelectedAdapter`.

    Raises:
        ValueError: If `samples` is neither.
    """

    def __init__(
        self,
        *,
        score: Score,
        strength: Weight,
        penalty: Weight | None,
        samples: Samples,
        learning_rate: Weight,
        steps: Count,
        plan_epochs: Count = 1,
        search: Search = None,
    ) -> None:
        super().__init__(score=score, search=search, strength=strength)
        if samples not in ("images", "views"):
            raise ValueError(f"adapter.samples is images (all views of an image together) or views (one by turns), got {samples!r}")
        self.penalty, self.samples, self.learning_rate, self.steps = penalty, samples, learning_rate, steps
        self.plan_epochs = plan_epochs
        self.losses: list[float] = []
        self.matrix = nn.Parameter(torch.eye(self.text.features.shape[-1]))

    @property
    def class_free(self) -> bool:
        """True: A is of no class."""
        return True

    def learn(self, support: Examples) -> None:
        """Train A on the support images."""
        n, n_views = support.views.shape[:2]
        penalty = 1 / int(support.labels.bincount().max()) if self.penalty is None else self.penalty
        score, batches, identity = HeldPlans(self.score, n, self.plan_epochs), FullBatch(n), torch.eye(len(self.matrix))

        def loss(batch: Tensor) -> Tensor:
            view = (batches.epoch + 1) % n_views
            views = support.views if self.samples == "images" else support.views[:, view : view + 1]
            moved = F.normalize(views @ self.matrix.T, dim=-1)
            logits = score(batch, moved, self.text) if self.samples == "images" else self.score(moved)
            return F.cross_entropy(logits, support.labels) + penalty * (self.matrix - identity).square().sum()

        schedule = CosineAnnealingLR(torch.optim.Adam([self.matrix], lr=self.learning_rate, eps=1e-4, fused=True), self.steps)
        self.losses = descend(
            loss,
            schedule,
            batches,
            epochs=self.steps,
            keep_epochs=self.plan_epochs,
            checkpoint=self.checkpoint,
            progress=self.progress,
        )

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return the aggregator's logits of the changed views as a function of strength; `logits` are those of strength 0."""
        return lambda strength: self.score(self.moved(views, strength)) if strength else logits

    def moved(self, views: Views, strength: float | int) -> Views:
        """Return the views after the linear map, unit-norm, in the shape of `views`."""
        return F.normalize(views + strength * (views @ self.matrix.T - views), dim=-1)


class FullBatch:
    """All examples once per epoch, in their order.

    Args:
        n: Number of examples.
    """

    def __init__(self, n: int) -> None:
        self.n, self.epoch = n, 0

    def __iter__(self) -> Iterator[Int[Tensor, " n"]]:
        yield torch.arange(self.n)

    def __len__(self) -> int:
        return 1
