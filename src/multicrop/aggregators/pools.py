"""Pools reduce a set of features to one: (*batch, set, dim) and a mask -> (*batch, dim)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def mean(x: Float[Tensor, "*batch set dim"], mask: Bool[Tensor, "*#batch set"] | None = None) -> Float[Tensor, "*batch dim"]:
    """The normalised mean of the unmasked members; raises ValueError when a set has none."""
    if mask is None:
        return F.normalize(x.mean(-2), dim=-1)
    if not mask.any(-1).all():
        raise ValueError("a pool got an empty set: every set needs one unmasked member or more")
    weight = mask.to(x.dtype) / mask.sum(-1, keepdim=True)
    return F.normalize((torch.where(mask[..., None], x, 0) * weight[..., None]).sum(-2), dim=-1)


def masked_mean(x: Float[Tensor, "*batch set"], mask: Bool[Tensor, "*#batch set"]) -> Float[Tensor, "*batch"]:
    """The plain mean of numbers over the unmasked members."""
    return torch.where(mask, x, 0).sum(-1) / mask.sum(-1)


def similarity_weights(
    x: Float[Tensor, "*batch set dim"],
    query: Float[Tensor, "*batch dim"],
    mask: Bool[Tensor, "*#batch set"] | None = None,
    *,
    log_scale: float,
) -> Float[Tensor, "*batch set"]:
    """Softmax over the unmasked members of e^log_scale times their similarity to the query; 0 for the masked (WCA, ICML 2024)."""
    scores = math.exp(log_scale) * (x @ query[..., None]).squeeze(-1)
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


def weighted_sum(x: Float[Tensor, "*batch set dim"], weights: Float[Tensor, "*batch set"]) -> Float[Tensor, "*batch dim"]:
    """The sum of the members times their weights, not normalised."""
    return (x * weights[..., None]).sum(-2)
