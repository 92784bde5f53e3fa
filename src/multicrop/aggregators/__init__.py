"""Aggregators: (views, text, logit_scale) -> class logits. Stateless; view 0 is the global view, prompt 0 the label prompt.

`view_set` and `text_set` say what an aggregator looks at: `crops` leaves the global view out wherever there is any crop, and
`descriptions` leaves the label prompt out. Logits are on the scale of logit_scale * cosine, but for `vote` and `soft_match`.
"""

from multicrop.aggregators.base import Aggregator, Logits, Views, fuse, select_views, similarities, view_logits
from multicrop.aggregators.confidence import entropy, vote
from multicrop.aggregators.matching import optimal_transport, transport_plan
from multicrop.aggregators.mean_shift import mta
from multicrop.aggregators.means import global_view, max, mean_feature, mean_similarity, topk
from multicrop.aggregators.weighted import soft_match, wca

__all__ = [
    "Aggregator",
    "Logits",
    "Views",
    "entropy",
    "fuse",
    "global_view",
    "max",
    "mean_feature",
    "mean_similarity",
    "mta",
    "optimal_transport",
    "select_views",
    "similarities",
    "soft_match",
    "topk",
    "transport_plan",
    "view_logits",
    "vote",
    "wca",
]
