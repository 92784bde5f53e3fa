"""Bounds on exact transport, for many problems at once: cheaper plans than any feasible one, and feasible dual potentials."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multicrop.transport.entropic import advance, start

EPSILON = 0.02  # of the Sinkhorn iterations that look for good dual potentials, in units of cosine distance
ITERATIONS = 15


def relaxed_scores(
    similarity: Float[Tensor, "batch views classes prompts"],
    a: Float[Tensor, "batch views"],
    b: Float[Tensor, "batch classes prompts"],
    mask: Bool[Tensor, "classes prompts"],
) -> Float[Tensor, "batch classes"]:
    """At least the exact score <P, S>: with one marginal dropped, every prompt takes its best view, or every view its best prompt.

    Either is a maximum over a set of plans that holds the optimal one (Kusner et al., ICML 2015, for word embeddings); the smaller counts.
    """
    by_prompt = (similarity.amax(1) * b).sum(-1)
    best = similarity if mask.all() else similarity.masked_fill(~mask, -torch.inf)
    by_view = torch.einsum("bkc,bk->bc", best.amax(-1), a)
    return torch.minimum(by_prompt, by_view)


def dual_scores(
    similarity: Float[Tensor, "problems views prompts"], a: Float[Tensor, "problems views"], b: Float[Tensor, "problems prompts"]
) -> Float[Tensor, " problems"]:
    """At least the exact score: 1 minus the dual value a.u + b.v of potentials with u[k] + v[m] <= cost[k, m], which no plan undercuts.

    A few Sinkhorn iterations give v; u[k] = min_m cost[k, m] - v[m] and then v[m] = min_k cost[k, m] - u[k] are the largest feasible ones,
    whatever the iterations gave.
    """
    state = start(1 - similarity, a, b, EPSILON)
    advance(state, ITERATIONS, EPSILON)
    state.absorb(EPSILON)
    u = (state.cost - state.g[:, None]).amin(2)
    u = torch.where(a > 0, u, 0)
    v = (state.cost - u[..., None]).amin(1)
    return 1 - (a * u).sum(-1) - torch.where(b > 0, b * v, 0).sum(-1)
