"""The aggregator during training: transport plans of the support images are solved on some visits and held in between."""

from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from multicrop.aggregators import Aggregator, Logits, Views, select_views, similarities
from multicrop.aggregators.score import Score, Scorer, with_aggregator, with_text
from multicrop.text import TextBank

HELD_BYTES = 2**30  # above this size, plans are solved at every step


class HeldPlans:
    """Class logits of support images with moved views or prompts, for training.

    A transport plan is a constant in the gradient in any case. Here the plans of an image are solved on every `every`-th visit (an epoch
    visits it once) for the current features, and held on the visits in between. The score <P, S> is then that of a feasible plan: never
    above the score of the exact plan, equal to it when the plan is new, and with the exact gradient for the held plan. The logits are the
    aggregator's own with `every` 1, with any aggregator without a transport plan, and if the plans exceed `HELD_BYTES`.

    Args:
        score: The run's aggregator, fused with the global view.
        n: Number of support images.
        every: Number of visits for which a plan is held.

    Raises:
        ValueError: If `every` is below 1.
    """

    def __init__(self, score: Score, n: int, every: int) -> None:
        if every < 1:
            raise ValueError(f"adapter.plan_epochs is 1 (solve the transport at every step) or more epochs, got {every}")
        self.score, self.every, self.n = score, every, n
        self.plans: Tensor | None = None
        self.aggregator = score.aggregator if isinstance(score, Scorer) and score.aggregator.has_plan else None
        self.visits = torch.zeros(n, dtype=torch.long)

    def __call__(self, rows: Int[Tensor, " batch"], views: Views, text: TextBank) -> Logits:
        """Compute the fused class logits of some support images.

        Args:
            rows: Positions of the images in the support set, shape (batch,).
            views: Their current view features, shape (batch, views, dim).
            text: The current text bank.

        Returns:
            Logits, shape (batch, classes), differentiable in `views` and `text`.
        """
        score = with_text(self.score, text)
        if self.every > 1 and self.aggregator is not None and isinstance(score, Scorer) and self._fits(views, text):
            score = with_aggregator(score, partial(self._transported, rows=rows, aggregator=self.aggregator))
        if isinstance(score, Scorer) and score.fusion_weight == 1:  # the global view's logits would be computed for nothing
            return score.local_logits(views)
        return score(views)

    def _fits(self, views: Views, text: TextBank) -> bool:
        return self.n * views.shape[1] * text.mask.numel() * 4 <= HELD_BYTES

    def _transported(self, views: Views, text: TextBank, logit_scale: float, *, rows: Tensor, aggregator: Aggregator) -> Logits:
        if self.plans is None or self.visits[rows[0]] % self.every == 0:
            plan = self._solved(aggregator, views, text, logit_scale)
            self.plans = plan.new_zeros(self.n, *plan.shape[1:]) if self.plans is None else self.plans
            self.plans[rows] = plan
        self.visits[rows] += 1
        scores = similarities(select_views(views, aggregator.view_set), text.select(aggregator.text_set))
        return logit_scale * (self.plans[rows] * scores).sum((-2, -1))

    @torch.no_grad()
    def _solved(self, aggregator: Aggregator, views: Views, text: TextBank, logit_scale: float) -> Tensor:
        """The plans of the given views, of mass 1 each."""
        plan = aggregator.plan(views, text, logit_scale)
        if plan is None:
            raise ValueError("held plans need an aggregator with a transport plan")
        return plan.mass / plan.mass.sum((-2, -1), keepdim=True)
