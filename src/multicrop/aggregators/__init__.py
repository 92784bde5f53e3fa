"""Aggregators: (views, text, logit_scale) -> class logits. Stateless; view 0 is the global view, prompt 0 the label prompt.

`view_set` and `text_set` choose what an aggregator reads: `crops` leaves the global view out where there is any crop, and
`descriptions` leaves the label prompt out. Logits are on the scale of logit_scale * cosine, except those of `vote` and `soft_match`.

A new aggregator is one function and one YAML file. What it has beyond logits (a transport plan, pruning) is declared by the decorator
`aggregator`.
"""

from multicrop.aggregators.base import Logits, Views, fuse, select_views, similarities, view_logits
from multicrop.aggregators.blended import lazsl, lazsl_plan
from multicrop.aggregators.confidence import entropy, vote
from multicrop.aggregators.declared import Aggregator, AggregatorFunction, TransportPlan, aggregator, as_aggregator
from multicrop.aggregators.gate import gated
from multicrop.aggregators.matching import optimal_transport, transport_plan
from multicrop.aggregators.mean_shift import mta
from multicrop.aggregators.means import global_view, max, mean_feature, mean_similarity, topk
from multicrop.aggregators.weighted import soft_match, wca

__all__ = [
    "Aggregator",
    "AggregatorFunction",
    "Logits",
    "TransportPlan",
    "Views",
    "aggregator",
    "as_aggregator",
    "entropy",
    "fuse",
    "gated",
    "global_view",
    "lazsl",
    "lazsl_plan",
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
