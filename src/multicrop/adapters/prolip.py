"""ProLIP (Fahes et al., arXiv 2410.05270): only the visual projection of the image tower is trained, held near its start."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from multicrop.adapters.linear_map import LinearMap
from multicrop.adapters.selection import Search
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Count, Samples, Weight


class ProLip(LinearMap):
    """Compute the aggregator's logits of views norm(W x), with the visual projection W (dim, width) trained from its start W0.

    x are views before the projection, see `LinearMap`. Their length does not change norm(W x), so that a bank of unit-norm x serves.

    Source: Fahes et al., arXiv 2410.05270. As there, the penalty is 1 / shots, and step t uses view t + 1 of each image
    (``samples="views"``), where the authors have 300 augmented views and here the views are those of the bank. They train in half
    precision at a learning rate of 1e-5, where most steps are rounded away; single precision moves further at the same rate. `strength` is
    ours; 1 is the authors'.

    Args:
        score: The run's aggregator, fused with the global view.
        projection: W0, shape (dim, width).
        strength: Share of the learned change, 0 for none.
        penalty: Weight of the squared distance of W from W0; None for 1 / shots of the largest class.
        samples: ``"images"``: a step scores all views of an image together. ``"views"``: one view per image, by turns, each alone.
        learning_rate: Initial learning rate of Adam.
        steps: Number of steps.
        plan_epochs: Number of steps for which a transport plan is held, see `HeldPlans`.
        search: Values of strength to try, see `SelectedAdapter`.

    Raises:
        ValueError: If `samples` is neither.
    """

    reads_unprojected: ClassVar[bool] = True

    def __init__(
        self,
        *,
        score: Score,
        projection: Float[Tensor, "dim width"],
        strength: Weight,
        penalty: Weight | None,
        samples: Samples,
        learning_rate: Weight,
        steps: Count,
        plan_epochs: Count = 1,
        search: Search = None,
    ) -> None:
        super().__init__(
            score=score,
            start=projection,
            strength=strength,
            penalty=penalty,
            samples=samples,
            learning_rate=learning_rate,
            steps=steps,
            plan_epochs=plan_epochs,
            search=search,
        )
