"""The aggregator at work, as adapters and methods are given it: class logits of views against prompts that they may change."""

import copy
from functools import partial
from typing import Protocol, runtime_checkable

from multicrop.aggregators.base import Aggregator, Logits, Views, fuse
from multicrop.aggregators.means import global_view
from multicrop.text import TextBank


@runtime_checkable
class Score(Protocol):
    """Class logits of views against `text`, fused with the global view's; differentiable in both."""

    text: TextBank
    logit_scale: float

    def __call__(self, views: Views) -> Logits:
        """Class logits."""


class Scorer:
    """Class logits of views: the aggregator's, fused with the global view's."""

    def __init__(self, text: TextBank, logit_scale: float, aggregator: Aggregator, fusion_weight: float) -> None:
        if not 0 <= fusion_weight <= 1:
            raise ValueError(f"task.fusion_weight lies between 0 (global view) and 1 (aggregator), got {fusion_weight}")
        self.text, self.logit_scale, self.aggregator, self.fusion_weight = text, logit_scale, aggregator, fusion_weight
        self.spared = 0.0  # seconds that an earlier job spent on logits that this one was given

    def __call__(self, views: Views) -> Logits:
        """The fused logits."""
        return fuse(self.global_logits(views), self.local_logits(views), self.fusion_weight)

    def local_logits(self, views: Views) -> Logits:
        """The aggregator's logits."""
        return self.aggregator(views, self.text, self.logit_scale)

    def global_logits(self, views: Views) -> Logits:
        """The global view's logits."""
        return global_view(views, self.text, self.logit_scale)


def with_text(score: Score, text: TextBank) -> Score:
    """The same score against other prompt features."""
    changed = copy.copy(score)
    changed.text = text
    return changed


def reads_labels_alone(score: Score) -> bool:
    """Whether the aggregator takes no prompt but the label prompts, so that no other needs to go through the tower."""
    aggregator = getattr(score, "aggregator", None)
    function, knobs = (aggregator.func, aggregator.keywords) if isinstance(aggregator, partial) else (aggregator, {})
    return function is global_view or knobs.get("text_set") == "label"
