"""Optimal transport between the crops of an image and the descriptions of a class, batched over images and classes."""

from multicrop.transport.dispatch import solve, uniform_marginal
from multicrop.transport.entropic import sinkhorn
from multicrop.transport.pruning import Certified, Problems, certified_scores, transported
from multicrop.transport.relaxed import Plan, partial, unbalanced
from multicrop.transport.simplex import exact

__all__ = [
    "Certified",
    "Plan",
    "Problems",
    "certified_scores",
    "exact",
    "partial",
    "sinkhorn",
    "solve",
    "transported",
    "unbalanced",
    "uniform_marginal",
]
