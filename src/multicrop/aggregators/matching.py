"""Optimal transport from the crops of an image to the prompts of each class (after D&D and AWT)."""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop import transport
from multicrop.aggregators import marginals
from multicrop.aggregators.base import MAX_ELEMENTS, Logits, Views, blocks, chunks, classes_of, select_texts, select_views, similarities
from multicrop.aggregators.declared import TransportPlan, aggregator
from multicrop.aggregators.marginals import Marginal
from multicrop.config.ranges import Elements, Fraction, KnobsOf, Positive, TextSet, ViewSet
from multicrop.text import TextBank

UNSOLVED = 4  # times as many similarities fit in memory where most are only bounded, because a solver keeps copies


def transport_plan(
    views: Views,
    text: TextBank,
    *,
    view_set: str = "crops",
    text_set: str = "descriptions",
    view_marginal: str = "uniform",
    prompt_marginal: str = "uniform",
    view_temperature: float | int | None = None,
    prompt_temperature: float | int | None = None,
    logit_scale: float | int = 100.0,
    classes: Sequence[int] | None = None,
    prune: bool = False,
    certified_fusion_weight: float | int = 1.0,
    max_elements: int = MAX_ELEMENTS,
    **solver: str | int | float,
) -> TransportPlan:
    """Compute the transport plans behind `optimal_transport`.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank with all classes, because some marginals compare them.
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.
        view_marginal: Masses of the views: ``"uniform"``, ``"similarity"``, ``"entropy"`` or ``"best_match"`` (`marginals`).
        prompt_marginal: Masses of the prompts of each class, one of the same names.
        view_temperature: Temperature of the view marginal; None: that of its source.
        prompt_temperature: Temperature of the prompt marginal; None: that of its source.
        logit_scale: Multiplier of cosine similarities; read by entropy marginals only.
        classes: The classes to solve, in this order; None: all.
        prune: Not read: the plans of all `classes` are solved.
        certified_fusion_weight: Not read.
        max_elements: Not read.
        **solver: Knobs of `transport.solve`: ``solver``, ``epsilon``, ``tolerance``, ``max_iterations``, ``marginal_penalty``, ``mass``.

    Returns:
        Similarities and plans, shape (batch, classes, views, prompts), and the prompts that they run over.
    """
    label, text = text.label, select_texts(text, text_set)
    a, b = masses(
        views,
        text,
        label,
        view_set=view_set,
        view_marginal=view_marginal,
        prompt_marginal=prompt_marginal,
        view_temperature=view_temperature,
        prompt_temperature=prompt_temperature,
        logit_scale=logit_scale,
    )
    if classes is not None:
        b, text = b[:, list(classes)], classes_of(text, classes)
    scores = similarities(select_views(views, view_set), text)
    return TransportPlan(scores, solved_plan(scores, a, b, solver), text)


@aggregator(plan=transport_plan, pruning=("prune", "certified_fusion_weight"))
def optimal_transport(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    view_set: ViewSet = "crops",
    text_set: TextSet = "descriptions",
    view_marginal: Marginal = "uniform",
    prompt_marginal: Marginal = "uniform",
    view_temperature: Positive | None = None,
    prompt_temperature: Positive | None = None,
    prune: bool = False,
    certified_fusion_weight: Fraction = 1.0,
    max_elements: Elements = MAX_ELEMENTS,
    **solver: Annotated[str | int | float, KnobsOf(transport.solve)],
) -> Logits:
    """Transport the crops of an image to the prompts of each class, and score by the cost (after D&D, arXiv 2507.03458).

    logit_scale * (1 - <P, 1 - S> / sum P), P the transport plan and S the cosine similarities, without the entropy term. D&D's
    marginals, solver and epsilon are not public: these are our knobs. With entropy marginals on both sides and epsilon 0.1 this is AWT
    (NeurIPS 2024), whose code stops when the scalings move less than 1e-2 on average; the converged plan agrees with its logits to 1e-4.
    Gradients flow through the similarities; marginals and plans are constants.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.
        view_marginal: Masses of the views: ``"uniform"``, ``"similarity"``, ``"entropy"`` or ``"best_match"`` (`marginals`).
        prompt_marginal: Masses of the prompts of each class, one of the same names.
        view_temperature: Temperature of the view marginal; None: that of its source.
        prompt_temperature: Temperature of the prompt marginal; None: that of its source.
        prune: Solve only the classes that can be among an image's five best (exact solver only). Prediction and five best stay the same
            (proof at `transport.certified_scores`); the other logits are upper bounds below the five best, so that probabilities and
            calibration errors change a little.
        certified_fusion_weight: The fusion weight with the global view's logits at which the five best are certified.
        max_elements: Most similarities in memory at once; a solver keeps a few copies. With `prune` four times as many, hardly copied, and
            those of one image to all classes at least.
        **solver: Knobs of `transport.solve`: ``solver``, ``epsilon``, ``tolerance``, ``max_iterations``, ``marginal_penalty``, ``mass``.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If a knob is unknown or out of range, a class has no description and descriptions are read, or `prune` is used with
            another solver than ``"exact"`` or where a gradient is needed.
    """
    if prune:
        _check_prunable(views.requires_grad or text.features.requires_grad, solver)
    weighing = {
        "view_set": view_set,
        "view_marginal": view_marginal,
        "prompt_marginal": prompt_marginal,
        "view_temperature": view_temperature,
        "prompt_temperature": prompt_temperature,
        "logit_scale": logit_scale,
    }
    label, text = text.label, select_texts(text, text_set)
    n_selected = select_views(views[:1], view_set).shape[1]
    rows = []
    for some in chunks(len(views), n_selected * text.mask.numel(), max_elements * (UNSOLVED if prune else 1)):
        part, chosen = views[some], select_views(views[some], view_set)
        a, b = masses(part, text, label, **weighing)
        if prune:
            offset = _offset(part, label, certified_fusion_weight)
            rows.append(_certified(chosen, text, a, b, offset))
        else:
            rows.append(transported_scores(chosen, text, a, b, max_elements, solver))
    return logit_scale * torch.cat(rows)


@torch.no_grad()
def masses(
    views: Views,
    text: TextBank,
    label: Float[Tensor, "classes dim"],
    *,
    view_set: str,
    view_marginal: str,
    prompt_marginal: str,
    view_temperature: float | int | None,
    prompt_temperature: float | int | None,
    logit_scale: float | int,
) -> tuple[Float[Tensor, "batch selected"], Float[Tensor, "batch classes prompts"]]:
    """The two marginals: the masses of the selected views, and of the prompts of each class."""
    a = marginals.view_marginal(views, text, logit_scale, name=view_marginal, temperature=view_temperature, view_set=view_set)
    b = marginals.prompt_marginal(views, text, label, logit_scale, name=prompt_marginal, temperature=prompt_temperature, view_set=view_set)
    return a, b


def solved_plan(scores: Tensor, a: Tensor, b: Tensor, solver: dict) -> transport.Plan:
    """The plans (batch, classes, views, prompts) of cost 1 - scores, without a gradient."""
    with torch.no_grad():
        return transport.solve(1 - scores, a[:, None].expand(-1, scores.shape[1], -1), b, **solver)


def transported_scores(chosen: Views, text: TextBank, a: Tensor, b: Tensor, max_elements: int, solver: dict) -> Logits:
    """The scores of all classes, a few at once where one image's similarities are more than `max_elements`."""
    ((_, parts),) = blocks(chosen, text, max_elements)
    columns = []
    for part in parts:
        scores = similarities(chosen, classes_of(text, part))
        columns.append(transport.transported(solved_plan(scores, a, b[:, part], solver), scores))
    return torch.cat(columns, 1)


def _certified(chosen: Views, text: TextBank, a: Tensor, b: Tensor, offset: Logits) -> Logits:
    wide = torch.promote_types(chosen.dtype, torch.float32)  # the bounds hold within the rounding of float32
    similarity = torch.einsum("bkd,cmd->bkcm", chosen.to(wide), text.features.to(wide))
    problems = transport.Problems(similarity, a.to(wide), b.to(wide), offset.to(wide))
    return transport.certified_scores(problems, text.mask).scores.to(chosen.dtype)


def _offset(views: Views, label: Float[Tensor, "classes dim"], fusion_weight: float | int) -> Logits:
    """What fusion adds to a score: (1 - weight) / weight times the global view's similarity to the label prompts."""
    if fusion_weight in (0, 1):  # 0: no class is ranked by its transport
        return views.new_zeros(len(views), len(label))
    return (1 - fusion_weight) / fusion_weight * views[:, 0] @ label.T


def _check_prunable(trained: bool, solver: dict) -> None:
    """Raise ValueError where there are no bounds on the transport, or where a gradient is needed."""
    if (name := solver.get("solver", "sinkhorn")) != "exact":
        raise ValueError(
            f"aggregator.prune bounds the cost of exact transport, got aggregator.solver={name}: an entropic plan costs more "
            "the larger epsilon is, so the bounds leave many classes open (a quarter at 0.05, 40 % at 0.1 on random features), and "
            "unbalanced and partial plans obey no such bound. Use aggregator.solver=exact or aggregator.prune=false"
        )
    if trained and torch.is_grad_enabled():
        raise ValueError("aggregator.prune gives bounds, which have no gradient, for most classes; use aggregator.prune=false to train")
