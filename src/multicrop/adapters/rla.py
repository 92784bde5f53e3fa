"""RLA, the regularised linear adapter (Fahes et al., arXiv 2410.05270): a linear map of the image features, held near the identity."""

import torch

from multicrop.adapters.linear_map import LinearMap
from multicrop.adapters.selection import Search
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Count, Samples, Weight


class Rla(LinearMap):
    """Compute the aggregator's logits of views v' = norm(A v), with A (dim, dim) trained from the identity, see `LinearMap`.

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
        super().__init__(
            score=score,
            start=torch.eye(score.text.features.shape[-1]),
            strength=strength,
            penalty=penalty,
            samples=samples,
            learning_rate=learning_rate,
            steps=steps,
            plan_epochs=plan_epochs,
            search=search,
        )
