"""A gate against harm: local evidence counts less where crops are less sure of a class than the global view."""

from typing import Annotated

from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators.base import Logits, Views, check_positive, entropies, select_views, view_logits
from multicrop.aggregators.declared import AggregatorFunction, as_aggregator
from multicrop.aggregators.means import global_view
from multicrop.config.ranges import Positive
from multicrop.text import TextBank

Nats = Annotated[float | int, Interval(ge=-100, le=100)]


def entropy_gap(views: Views, text: TextBank, logit_scale: float) -> Float[Tensor, " batch"]:
    """How much less sure the crops are than the global view: mean entropy of the crops minus entropy of the global view, nats.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; only its label prompts are read.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).

    Returns:
        The gap of each image; 0 where there are no crops.
    """
    label = text.select("label")
    crops, whole = (entropies(view_logits(some, label, logit_scale)) for some in (select_views(views, "crops"), views[:, :1]))
    return crops.mean(1) - whole.squeeze(1)


def gated(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    local: AggregatorFunction,
    threshold: Nats = 0.3,
    width: Positive = 0.02,
) -> Logits:
    """Fuse an aggregator with the global view by a weight of its own for each image, from entropies, without labels (ours).

    w = sigmoid((threshold - gap) / width), with the gap of `entropy_gap`; logits are (1 - w) * global + w * local, and the task's fusion
    weight multiplies w. Noise raises the entropy of crops above that of the global view, and there crops reduce accuracy.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        local: The aggregator whose logits are gated, with its knobs bound; its logits are on the scale of logit_scale * cosine.
        threshold: Gap at which its weight is 1/2, nats.
        width: Width of the transition, nats, above 0.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If the width is not above 0.
    """
    check_positive(width=width)
    weight = ((threshold - entropy_gap(views, text, logit_scale)) / width).sigmoid()[:, None]
    return (1 - weight) * global_view(views, text, logit_scale) + weight * as_aggregator(local)(views, text, logit_scale)
