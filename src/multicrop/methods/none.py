"""No adaptation: the baseline of a sweep over methods."""

from multicrop.aggregators import Logits, Views
from multicrop.methods.base import Method


class Unchanged(Method):
    """The text logits as they are."""

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The logits that came."""
        return logits
