"""Aggregators: (views, text, logit_scale) -> class logits. Stateless; view 0 is the global view, prompt 0 the label prompt.

`view_set` and `text_set` say what an aggregator looks at: `crops` leaves the global view out wherever there is any crop, and
`descriptions` leaves the label prompt out.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop import pools, transport
from multicrop.prompts import TextBank

Aggregator = Callable[..., Float[Tensor, "batch classes"]]
Views = Float[Tensor, "batch views dim"]
Logits = Float[Tensor, "batch classes"]


def select_views(views: Views, view_set: str) -> Float[Tensor, "batch selected dim"]:
    """All views, or the crops alone; where a policy makes no crops, the global view is the only view there is."""
    if view_set not in ("all", "crops"):
        raise ValueError(f"view_set is all or crops, got {view_set!r}")
    return views if view_set == "all" or views.shape[1] == 1 else views[:, 1:]


def similarities(views: Views, text: TextBank) -> Float[Tensor, "batch classes views prompts"]:
    """Cosine similarity of every view to every prompt, padding included."""
    return torch.einsum("bkd,cmd->bckm", views, text.features)


def global_view(views: Views, text: TextBank, logit_scale: float) -> Logits:
    """The global view against the label prompts (CLIP)."""
    return logit_scale * views[:, 0] @ text.label.T


def mean_feature(views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str) -> Logits:
    """The normalised mean view against the normalised mean prompt of each class."""
    text = text.select(text_set)
    image = pools.mean(select_views(views, view_set))
    return logit_scale * image @ pools.mean(text.features, text.mask).T


def max(views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str, each: str) -> Logits:
    """Late interaction (FILIP, ColBERT): the best view of each prompt, averaged over prompts; or the converse.

    `each` is `prompt` (best view for each prompt), `view` (best prompt for each view) or `both`, their mean.
    """
    if each not in ("prompt", "view", "both"):
        raise ValueError(f"aggregator.each is prompt, view or both, got {each!r}")
    text = text.select(text_set)
    scores = similarities(select_views(views, view_set), text)
    masked = scores.masked_fill(~text.mask[:, None], -torch.inf)
    by_prompt = pools.masked_mean(scores.amax(2), text.mask)
    by_view = masked.amax(3).mean(2)
    return logit_scale * {"prompt": by_prompt, "view": by_view, "both": (by_prompt + by_view) / 2}[each]


def optimal_transport(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    solver: str,
    epsilon: float,
    view_set: str,
    text_set: str,
    tolerance: float = 1e-3,
    max_iterations: int = 500,
) -> Logits:
    """logit_scale * (1 - transport cost) of the crops to each class's descriptions, uniform masses (after D&D, arXiv 2507.03458).

    The cost is <P, 1 - S> without the entropy term. The paper's marginals, solver and epsilon are not public: these are our knobs.
    """
    scores, plan, _ = transport_plan(
        views,
        text,
        solver=solver,
        epsilon=epsilon,
        view_set=view_set,
        text_set=text_set,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    return logit_scale * (plan * scores).sum((2, 3))


def transport_plan(
    views: Views,
    text: TextBank,
    *,
    solver: str,
    epsilon: float,
    view_set: str,
    text_set: str,
    tolerance: float = 1e-3,
    max_iterations: int = 500,
) -> tuple[Tensor, Tensor, TextBank]:
    """Similarities and plans (batch, classes, views, prompts) behind `optimal_transport`, and the prompts they run over.

    Gradients flow through the similarities; the plan is detached.
    """
    text = text.select(text_set)
    scores = similarities(select_views(views, view_set), text)
    batch, classes, n_views, _ = scores.shape
    a = scores.new_full((batch, classes, n_views), 1 / n_views)
    b = transport.uniform_marginal(text.mask).expand(batch, -1, -1)
    with torch.no_grad():
        plan = transport.solve(
            1 - scores.detach(), a, b, solver=solver, epsilon=epsilon, tolerance=tolerance, max_iterations=max_iterations
        )
    return scores, plan, text


def fuse(global_logits: Logits, logits: Logits, weight: float) -> Logits:
    """(1 - weight) * the global view's logits + weight * the aggregator's; weight 1 is purely local."""
    return logits if weight == 1 else (1 - weight) * global_logits + weight * logits
