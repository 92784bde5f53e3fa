"""Bounds on exact transport, for many problems at once: cheaper plans than any feasible one, and feasible dual potentials."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 0.01  # of the Sinkhorn iterations that look for good dual potentials, in units of cosine distance
ITERATIONS = 5
SPAN = 0.4  # cosine: a prompt that is further below the best one of its view counts as this far, which keeps the iterations in float32


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
    by_view = (a[:, None] @ best.amax(-1)).squeeze(1)
    return torch.minimum(by_prompt, by_view)


def dual_scores(
    similarity: Float[Tensor, "problems views prompts"], a: Float[Tensor, "problems views"], b: Float[Tensor, "problems prompts"]
) -> Float[Tensor, " problems"]:
    """At least the exact score: the dual value a.u + b.v of prices with u[k] + v[m] >= S[k, m], which no plan exceeds.

    A few Sinkhorn iterations give v; u[k] = max_m S[k, m] - v[m] and then v[m] = max_k S[k, m] - u[k] are the lowest feasible prices,
    whatever the iterations gave. Where they gave no number, the bound is infinite.
    """
    below = similarity - similarity.amax(2, keepdim=True)
    kernel = (below.clamp_min(-SPAN) / EPSILON).exp()
    s = torch.ones_like(b)
    for _ in range(ITERATIONS):
        r = a / torch.bmm(kernel, s[..., None]).squeeze(2)
        s = b / torch.bmm(r[:, None], kernel).squeeze(1)
    u = (similarity + EPSILON * s.log()[:, None]).amax(2)
    v = (similarity - u[..., None]).amax(1)
    return ((a * u).sum(-1) + torch.where(b > 0, b * v, 0).sum(-1)).nan_to_num(nan=torch.inf)
