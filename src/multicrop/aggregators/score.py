"""The scorer: class logits of views by an aggregator, fused with the global view's; adapters and methods may replace its prompts."""

import copy
from typing import Protocol, runtime_checkable

from multicrop.aggregators.base import Logits, Views, fuse
from multicrop.aggregators.declared import AggregatorFunction, as_aggregator
from multicrop.aggregators.means import global_view
from multicrop.text import TextBank


@runtime_checkable
class Score(Protocol):
    """Class logits of views against `text`, fused with the global view's; differentiable in both."""

    text: TextBank
    logit_scale: float

    def __call__(self, views: Views) -> Logits:
        """Class logits."""
        ...


class Scorer:
    """Scores views by an aggregator, fused with the global view: (1 - weight) * global logits + weight * aggregator logits.

    Args:
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        aggregator: An Aggregator, or a function or functools.partial that is one.
        fusion_weight: 0 (global view only) to 1 (aggregator only).

    Raises:
        ValueError: If the fusion weight is not in 0-1.
    """

    def __init__(self, text: TextBank, logit_scale: float, aggregator: AggregatorFunction, fusion_weight: float) -> None:
        if not 0 <= fusion_weight <= 1:
            raise ValueError(f"task.fusion_weight lies between 0 (global view) and 1 (aggregator), got {fusion_weight}")
        self.text, self.logit_scale, self.fusion_weight = text, logit_scale, fusion_weight
        self.aggregator = as_aggregator(aggregator)
        self.spared = 0.0  # seconds that an earlier job spent on logits that this one reads from the cache

    def views_read(self, n_views: int) -> int:
        """The number of views per image that the logits depend on, as the aggregator declares it.

        Args:
            n_views: Views per image, the global view included.
        """
        if n_views == 1 or self.fusion_weight == 0 or self.aggregator.function is global_view:
            return 1
        return n_views - 1 if self.aggregator.crops_only and self.fusion_weight == 1 else n_views

    def __call__(self, views: Views) -> Logits:
        """The fused logits, shape (batch, classes)."""
        return fuse(self.global_logits(views), self.local_logits(views), self.fusion_weight)

    def local_logits(self, views: Views) -> Logits:
        """The aggregator's logits; raises ValueError where they have another shape."""
        logits = self.aggregator(views, self.text, self.logit_scale)
        wanted, got = (len(views), len(self.text.mask)), tuple(getattr(logits, "shape", ()))
        if got != wanted:
            raise ValueError(
                f"an aggregator returns logits of shape (batch, classes), here {wanted}; {self.aggregator.identity} returned "
                f"{got or type(logits).__name__}. Correct its function, or choose another aggregator=NAME"
            )
        return logits

    def global_logits(self, views: Views) -> Logits:
        """The global view's logits."""
        return global_view(views, self.text, self.logit_scale)


def with_text(score: Score, text: TextBank) -> Score:
    """The same score against other prompt features."""
    changed = copy.copy(score)
    changed.text = text
    return changed


def with_aggregator(score: Scorer, aggregator: AggregatorFunction) -> Scorer:
    """The same scorer with another aggregator."""
    changed = copy.copy(score)
    changed.aggregator = as_aggregator(aggregator)
    return changed


def reads_labels_alone(score: Score) -> bool:
    """Whether the score reads label prompts only, so that no other prompt has to pass through the text tower."""
    return isinstance(score, Scorer) and score.aggregator.text_set == "label"
