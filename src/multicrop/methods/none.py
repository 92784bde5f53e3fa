"""No adaptation: the baseline of a sweep over methods."""

from typing import ClassVar

from multicrop.aggregators import Logits, Views
from multicrop.methods.base import Method


class Unchanged(Method):
    """Return the text logits unchanged."""

    episodic: ClassVar[bool] = True

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Return `logits`."""
        return logits
