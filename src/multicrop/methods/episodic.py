"""Episodic methods that are aggregators: MTA and ZERO look at one image's views and forget them (reset each image by nature)."""

from multicrop.aggregators import AggregatorFunction, Logits, Views
from multicrop.methods.base import Method
from multicrop.text import TextBank


class Episodic(Method):
    """The logits of `aggregator` on each image's views; the text logits are not used, and there is no state."""

    def __init__(self, *, text: TextBank, logit_scale: float, aggregator: AggregatorFunction) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        self.aggregator = aggregator

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The aggregator's logits."""
        return self.aggregator(views, self.text, self.logit_scale)
