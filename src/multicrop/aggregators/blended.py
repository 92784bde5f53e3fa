"""LaZSL (ICCV 2025): crops that resemble the whole image are transported to the descriptions, and blended with the whole image."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from multicrop import transport
from multicrop.aggregators.base import (
    MAX_ELEMENTS,
    Logits,
    Views,
    chunks,
    classes_of,
    select_texts,
    select_views,
    similarities,
    view_logits,
)
from multicrop.aggregators.declared import TransportPlan, aggregator
from multicrop.aggregators.matching import solved_plan, transported_scores
from multicrop.config.ranges import Count, Elements, Positive, Share, TextSet
from multicrop.text import TextBank

Cosine = Annotated[float | int, Interval(ge=-2, le=2)]  # a difference of cosine similarities


def lazsl_plan(
    views: Views,
    text: TextBank,
    *,
    alpha: float | int,
    gamma: float | int,
    epsilon: float | int,
    text_set: str,
    tolerance: float | int,
    max_iterations: int,
    max_elements: int = MAX_ELEMENTS,
    logit_scale: float | int = 100.0,
    classes: Sequence[int] | None = None,
) -> TransportPlan:
    """Compute the transport plans behind `lazsl`, over all views; dropped crops and the global view have no mass.

    Args:
        views: See `lazsl`, as the arguments that are not listed here.
        text: See `lazsl`.
        alpha: See `lazsl`.
        gamma: See `lazsl`.
        epsilon: See `lazsl`.
        text_set: See `lazsl`.
        tolerance: See `lazsl`.
        max_iterations: See `lazsl`.
        max_elements: Not read.
        logit_scale: Not read.
        classes: The classes to solve, in this order; None: all.

    Returns:
        Blended similarities and plans, shape (batch, classes, views, prompts), and the prompts that they run over.
    """
    text = select_texts(text, text_set)
    text = text if classes is None else classes_of(text, classes)
    local, whole = similarities(views, text), similarities(views[:, :1], text)
    solver = {"solver": "sinkhorn", "epsilon": epsilon / alpha, "tolerance": tolerance, "max_iterations": max_iterations}
    b = transport.uniform_marginal(text.mask, views.dtype).expand(len(views), -1, -1)
    return TransportPlan((1 - alpha) * whole + alpha * local, solved_plan(local, crop_masses(views, gamma), b, solver), text)


@aggregator(plan=lazsl_plan)
def lazsl(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    alpha: Share = 0.8,
    gamma: Cosine = 0.0,
    epsilon: Positive = 0.1,
    text_set: TextSet = "descriptions",
    tolerance: Positive = 1e-4,
    max_iterations: Count = 500,
    max_elements: Elements = MAX_ELEMENTS,
) -> Logits:
    """Transport the crops that resemble the global view to the descriptions of each class, blended with the global view (LaZSL, ICCV 2025).

    A crop is kept if its similarity to the global view is at least the mean over the crops plus `gamma`. With X = (1 - alpha) <v0, T_cm> +
    alpha <V_k, T_cm> the score is logit_scale * <P, X>, P the entropic plan of cost 1 - X between kept crops and descriptions, both
    uniform. The first term of X is the same for all crops, so that P is the plan of the crops' own similarities at epsilon / alpha, and
    the score is (1 - alpha) mean_m <v0, T_cm> + alpha <P, local similarities>. Gradients flow through the similarities; the plan is
    constant.

    Source: LaZSL, ICCV 2025, after the authors' code, whose Sinkhorn stops after two to four iterations; the converged plan has the same
    scores to 1e-7. There a `gamma` above all similarities leaves no crop; here the most similar one is always kept.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        alpha: Share of the crops' similarities in the blend, above 0 and at most 1.
        gamma: What a crop's similarity to the global view must exceed their mean by, cosine.
        epsilon: Entropic regularisation of the blended cost, in units of cosine distance.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.
        tolerance: Largest error of the crop marginal.
        max_iterations: Maximum number of Sinkhorn iterations.
        max_elements: Most similarities in memory at once; the solver keeps a few copies.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If a knob is out of range, or a class has no description and descriptions are read.
    """
    text = select_texts(text, text_set)
    solver = {"solver": "sinkhorn", "epsilon": epsilon / alpha, "tolerance": tolerance, "max_iterations": max_iterations}
    whole = view_logits(views[:, :1], text, 1.0).squeeze(1)
    rows = []
    for some in chunks(len(views), views.shape[1] * text.mask.numel(), max_elements):
        part, mass = views[some], crop_masses(views[some], gamma)
        order = mass.argsort(dim=1, descending=True, stable=True)[:, : int((mass > 0).sum(1).max())]
        kept = part.gather(1, order[..., None].expand(-1, -1, part.shape[2]))
        b = transport.uniform_marginal(text.mask, views.dtype).expand(len(part), -1, -1)
        rows.append(transported_scores(kept, text, mass.gather(1, order), b, max_elements, solver))
    return logit_scale * ((1 - alpha) * whole + alpha * torch.cat(rows))


@torch.no_grad()
def crop_masses(views: Views, gamma: float | int) -> Float[Tensor, "batch views"]:
    """The mass of each view: uniform over the crops that resemble the global view, 0 for the others and for the global view itself."""
    crops = select_views(views, "crops")
    likeness = (crops @ views[:, 0, :, None]).squeeze(-1)
    kept = (likeness >= likeness.mean(1, keepdim=True) + gamma) | (likeness == likeness.amax(1, keepdim=True))
    mass = kept.to(views.dtype) / kept.sum(1, keepdim=True)
    left_out = views.shape[1] - crops.shape[1]
    return torch.nn.functional.pad(mass, (left_out, 0))
