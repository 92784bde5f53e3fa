"""Episodic methods that are aggregators: MTA and ZERO use the views of one image and keep nothing between images."""

from typing import ClassVar

from multicrop.aggregators import AggregatorFunction, Logits, Views
from multicrop.methods.base import Method
from multicrop.text import TextBank


class Episodic(Method):
    """Compute the logits of another aggregator on each image's views; the text logits are not used.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        aggregator: The aggregator that is the method.
    """

    episodic: ClassVar[bool] = True

    def __init__(self, *, text: TextBank, logit_scale: float, aggregator: AggregatorFunction) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        self.aggregator = aggregator

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Compute the aggregator's logits, shape (batch, classes)."""
        return self.aggregator(views, self.text, self.logit_scale)
