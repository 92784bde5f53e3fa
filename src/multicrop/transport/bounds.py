"""Upper bounds on exact transport scores, batched: relaxed plans and feasible dual potentials."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 0.01  # entropic regularisation of the Sinkhorn iterations, in units of cosine distance
ITERATIONS = 5
SPAN = 0.4  # cosine: largest distance of a prompt below the best one of its view that the iterations use, to stay in the range of float32


def relaxed_scores(
    similarity: Float[Tensor, "batch views classes prompts"],
    a: Float[Tensor, "batch views"],
    b: Float[Tensor, "batch classes prompts"],
    mask: Bool[Tensor, "classes prompts"],
) -> Float[Tensor, "batch classes"]:
    """Bound the exact scores <P, S> from above by dropping one marginal: each prompt takes its best view, or each view its best prompt.

    Either value is a maximum over a set of plans that contains the optimal one; the bound is the smaller. Source: Kusner et al., ICML 2015,
    for word embeddings.

    Args:
        similarity: Cosine similarities, shape (batch, views, classes, prompts).
        a: Mass of each view, shape (batch, views).
        b: Mass of each prompt, shape (batch, classes, prompts).
        mask: Whether a prompt is no padding, shape (classes, prompts).

    Returns:
        Bounds, shape (batch, classes).
    """
    by_prompt = (similarity.amax(1) * b).sum(-1)
    best = similarity if mask.all() else similarity.masked_fill(~mask, -torch.inf)
    by_view = (a[:, None] @ best.amax(-1)).squeeze(1)
    return torch.minimum(by_prompt, by_view)


def dual_scores(
    similarity: Float[Tensor, "problems views prompts"], a: Float[Tensor, "problems views"], b: Float[Tensor, "problems prompts"]
) -> Float[Tensor, " problems"]:
    """Bound the exact scores from above by the dual value a.u + b.v of prices with u[k] + v[m] >= S[k, m].

    A few Sinkhorn iterations give v; u[k] = max_m S[k, m] - v[m] and then v[m] = max_k S[k, m] - u[k] are the lowest feasible prices for
    any v.

    Args:
        similarity: Cosine similarities, shape (problems, views, prompts).
        a: Mass of each view, shape (problems, views).
        b: Mass of each prompt, shape (problems, prompts).

    Returns:
        Bounds, shape (problems,); infinite if the iterations overflow.
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
