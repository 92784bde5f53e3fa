"""Optimal transport from the crops of an image to the prompts of each class (after D&D and AWT)."""

import torch
from torch import Tensor

from multicrop import transport
from multicrop.aggregators import marginals
from multicrop.aggregators.base import Logits, Views, select_views, similarities
from multicrop.prompts import TextBank


def optimal_transport(views: Views, text: TextBank, logit_scale: float, **knobs: str | int | float | None) -> Logits:
    """logit_scale * (1 - transport cost) of the crops to each class's descriptions (after D&D, arXiv 2507.03458).

    The cost is <P, 1 - S> without the entropy term, for one unit of transported mass: where the solver is `unbalanced` or `partial`, the
    plan is divided by the mass that it moves. `knobs` are those of `transport_plan`. The paper's marginals, solver and epsilon are not
    public: these are our knobs. With entropy marginals on both sides and epsilon 0.1 this is AWT (NeurIPS 2024), whose code stops when
    the scalings move less than 1e-2 on average; the converged plan agrees with its logits to 1e-4.
    """
    scores, plan, _ = transport_plan(views, text, logit_scale=logit_scale, **knobs)
    return logit_scale * (plan * scores).sum((2, 3)) / plan.sum((2, 3))


def transport_plan(
    views: Views,
    text: TextBank,
    *,
    view_set: str,
    text_set: str,
    view_marginal: str = "uniform",
    prompt_marginal: str = "uniform",
    view_temperature: float | None = None,
    prompt_temperature: float | None = None,
    logit_scale: float = 100.0,
    **solver: str | int | float,
) -> tuple[Tensor, Tensor, TextBank]:
    """Similarities and plans (batch, classes, views, prompts) behind `optimal_transport`, and the prompts they run over.

    The marginals are those of `multicrop.aggregators.marginals`; some compare the classes, so `text` holds all of them. `logit_scale` is
    read by the entropy marginals alone. `solver` are the knobs of `transport.solve`. Gradients flow through the similarities; marginals
    and plan are detached.
    """
    label, text = text.label, text.select(text_set)
    scores = similarities(select_views(views, view_set), text)
    with torch.no_grad():
        a = marginals.view_marginal(views, text, logit_scale, name=view_marginal, temperature=view_temperature, view_set=view_set)
        b = marginals.prompt_marginal(
            views, text, label, logit_scale, name=prompt_marginal, temperature=prompt_temperature, view_set=view_set
        )
        a = a[:, None].expand(-1, scores.shape[1], -1)
        plan = transport.solve(1 - scores.detach(), a, b, **solver)
    return scores, plan, text
