"""The aggregator in training: transport plans of the support images are solved on some visits and held between them."""

from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from multicrop.aggregators import Logits, Views, select_views, similarities
from multicrop.aggregators.score import Score, Scorer, with_aggregator, with_text
from multicrop.text import TextBank

HELD_BYTES = 2**30  # plans beyond this are solved at every step


class HeldPlans:
    """Class logits of support images under moved views or prompts, as the aggregator gives them; for training.

    A transport plan is a constant in the gradient anyhow. Here an image's plans are solved on every `every`-th visit (an epoch visits it
    once) for the features as they are then, and kept on the visits between: the score <P, S> is that of a feasible plan, never above the
    score of the exact plan, equal to it when the plan is new, and its gradient is exact for the plan held. every 1 is the aggregator
    itself, and so is any aggregator without a transport plan, and a support set whose plans are over HELD_BYTES.
    """

    def __init__(self, score: Score, n: int, every: int) -> None:
        if every < 1:
            raise ValueError(f"adapter.plan_epochs is 1 (solve the transport at every step) or more epochs, got {every}")
        self.score, self.every, self.n, self.plans = score, every, n, None
        self.aggregator = score.aggregator if isinstance(score, Scorer) and score.aggregator.has_plan else None
        self.visits = torch.zeros(n, dtype=torch.long)

    def __call__(self, rows: Int[Tensor, " batch"], views: Views, text: TextBank) -> Logits:
        """Fused class logits of the support images `rows`, whose views are now `views`, against `text`."""
        score = with_text(self.score, text)
        if self.every > 1 and self.aggregator is not None and self._fits(views, text):
            score = with_aggregator(score, partial(self._transported, rows=rows))
        return score(views)

    def _fits(self, views: Views, text: TextBank) -> bool:
        return self.n * views.shape[1] * text.mask.numel() * 4 <= HELD_BYTES

    def _transported(self, views: Views, text: TextBank, logit_scale: float, *, rows: Tensor) -> Logits:
        if self.visits[rows[0]] % self.every == 0:
            self._solve(rows, views, text, logit_scale)
        self.visits[rows] += 1
        scores = similarities(select_views(views, self.aggregator.view_set), text.select(self.aggregator.text_set))
        return logit_scale * (self.plans[rows] * scores).sum((-2, -1))

    @torch.no_grad()
    def _solve(self, rows: Tensor, views: Views, text: TextBank, logit_scale: float) -> None:
        plan = self.aggregator.plan(views, text, logit_scale).mass
        if self.plans is None:
            self.plans = plan.new_zeros(self.n, *plan.shape[1:])
        self.plans[rows] = plan / plan.sum((-2, -1), keepdim=True)
