"""A linear map of image features, held near its start, which ProLIP and RLA train."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from multicrop.adapters.base import Examples
from multicrop.adapters.descent import descend
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score


class LinearMap(SelectedAdapter):
    """Compute the aggregator's logits of views v' = norm(A v), with A (dim, width) trained from a start A0.

    The loss is the cross entropy through the aggregator plus penalty * |A - A0|^2, the sum of squares of all entries. Adam (eps 1e-4) takes
    full-batch steps with cosine decay; the last step is kept. At prediction the map is A0 + strength (A - A0). `losses` holds the loss of
    each step.

    Args:
        score: The run's aggregator, fused with the global view.
        start: A0, shape (dim, width); width is the length of the views, dim that of the prompts.
        strength: Share of the learned change, 0 for none.
        penalty: Weight of the squared distance of A from A0; None for 1 / shots of the largest class.
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
        start: Float[Tensor, "dim width"],
        strength: float | int,
        penalty: float | int | None,
        samples: str,
        learning_rate: float | int,
        steps: int,
        plan_epochs: int,
        search: Search,
    ) -> None:
        super().__init__(score=score, search=search, strength=strength)
        if samples not in ("images", "views"):
            raise ValueError(f"adapter.samples is images (all views of an image together) or views (one by turns), got {samples!r}")
        self.penalty, self.samples, self.learning_rate, self.steps = penalty, samples, learning_rate, steps
        self.plan_epochs = plan_epochs
        self.losses: list[float] = []
        self.start, self.matrix = start, nn.Parameter(start.clone())

    @property
    def class_free(self) -> bool:
        """True: A is of no class."""
        return True

    def learn(self, support: Examples) -> None:
        """Train A on the support images."""
        n, n_views = support.views.shape[:2]
        penalty = 1 / int(support.labels.bincount().max()) if self.penalty is None else self.penalty
        score, batches = HeldPlans(self.score, n, self.plan_epochs), FullBatch(n)

        def loss(batch: Tensor) -> Tensor:
            view = (batches.epoch + 1) % n_views
            views = support.views if self.samples == "images" else support.views[:, view : view + 1]
            moved = F.normalize(views @ self.matrix.T, dim=-1)
            logits = score(batch, moved, self.text) if self.samples == "images" else self.score(moved)
            return F.cross_entropy(logits, support.labels) + penalty * (self.matrix - self.start).square().sum()

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

    def moved(self, views: Float[Tensor, "batch views width"], strength: float | int) -> Float[Tensor, "batch views dim"]:
        """Return the views after the linear map, unit-norm."""
        return F.normalize(views @ torch.lerp(self.start, self.matrix, float(strength)).T, dim=-1)


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
