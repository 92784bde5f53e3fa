"""The aggregator at work, as adapters and methods are given it: class logits of views against prompts that they may change."""

import copy
from functools import partial
from typing import Protocol, runtime_checkable

from multicrop.aggregators import Logits, Views, global_view
from multicrop.prompts import TextBank


@runtime_checkable
class Score(Protocol):
    """Class logits of views against `text`, fused with the global view's; differentiable in both."""

    text: TextBank
    logit_scale: float

    def __call__(self, views: Views) -> Logits:
        """Class logits."""


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
