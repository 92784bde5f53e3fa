"""Optimal transport from the crops of an image to the prompts of each class (after D&D and AWT)."""

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop import transport
from multicrop.aggregators import marginals
from multicrop.aggregators.base import MAX_ELEMENTS, Logits, Views, blocks, chunks, classes_of, select_texts, select_views, similarities
from multicrop.text import TextBank

UNSOLVED = 4  # times as many similarities fit in the same memory where most are only bounded: a solver keeps copies of its own


def optimal_transport(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    view_set: str,
    text_set: str,
    view_marginal: str = "uniform",
    prompt_marginal: str = "uniform",
    view_temperature: float | int | None = None,
    prompt_temperature: float | int | None = None,
    prune: bool = False,
    certified_fusion_weight: float | int = 1.0,
    max_elements: int = MAX_ELEMENTS,
    **solver: str | int | float,
) -> Logits:
    """logit_scale * (1 - transport cost) of the crops to each class's descriptions (after D&D, arXiv 2507.03458).

    The cost is <P, 1 - S> without the entropy term, for one unit of transported mass: where the solver is `unbalanced` or `partial`, the
    plan is divided by the mass that it moves. The marginals are those of `multicrop.aggregators.marginals`, `solver` the knobs of
    `transport.solve`. The paper's marginals, solver and epsilon are not public: these are our knobs. With entropy marginals on both sides
    and epsilon 0.1 this is AWT (NeurIPS 2024), whose code stops when the scalings move less than 1e-2 on average; the converged plan
    agrees with its logits to 1e-4. Gradients flow through the similarities; marginals and plans are constants.

    With `prune`, which is for the exact solver, only the classes that can be among an image's five best are solved. Prediction and five
    best are the same (the proof is at `transport.certified_scores`), also after fusion with the global view's logits at
    `certified_fusion_weight`. All other logits are bounds: never below the exact ones, and below the five best. So probabilities, and the
    calibration error that is made of them, differ a little; `prune: false` gives every logit exactly.

    `max_elements` similarities are in memory at once, a few times over while they are solved, whatever the number of classes; with `prune`
    four times as many, hardly copied, and those of one image to all classes at least. The descriptions' features are copied once a call.
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
            rows.append(_solved(chosen, text, a, b, max_elements, solver))
    return logit_scale * torch.cat(rows)


def transport_plan(
    views: Views,
    text: TextBank,
    *,
    view_set: str,
    text_set: str,
    view_marginal: str = "uniform",
    prompt_marginal: str = "uniform",
    view_temperature: float | int | None = None,
    prompt_temperature: float | int | None = None,
    logit_scale: float | int = 100.0,
    prune: bool = False,
    certified_fusion_weight: float | int = 1.0,
    max_elements: int = MAX_ELEMENTS,
    **solver: str | int | float,
) -> tuple[Tensor, Tensor, TextBank]:
    """Similarities and plans (batch, classes, views, prompts) behind `optimal_transport`, and the prompts they run over.

    `text` holds all classes, because some marginals compare them. `logit_scale` is read by the entropy marginals alone. Every class is
    solved, so `prune` and `max_elements` are not read.
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
    scores = similarities(select_views(views, view_set), text)
    return scores, _plan(scores, a, b, solver), text


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


def _plan(scores: Tensor, a: Tensor, b: Tensor, solver: dict) -> transport.Plan:
    with torch.no_grad():
        return transport.solve(1 - scores, a[:, None].expand(-1, scores.shape[1], -1), b, **solver)


def _solved(chosen: Views, text: TextBank, a: Tensor, b: Tensor, max_elements: int, solver: dict) -> Logits:
    """The scores of all classes, a few at once where one image's similarities are more than `max_elements`."""
    ((_, parts),) = blocks(chosen, text, max_elements)
    columns = []
    for part in parts:
        scores = similarities(chosen, classes_of(text, part))
        columns.append(transport.transported(_plan(scores, a, b[:, part], solver), scores))
    return torch.cat(columns, 1)


def _certified(chosen: Views, text: TextBank, a: Tensor, b: Tensor, offset: Logits) -> Logits:
    similarity = torch.einsum("bkd,cmd->bkcm", chosen, text.features)
    return transport.certified_scores(transport.Problems(similarity, a, b, offset), text.mask).scores


def _offset(views: Views, label: Float[Tensor, "classes dim"], fusion_weight: float | int) -> Logits:
    """What fusion adds to a score of the same scale: (1 - weight) / weight times the global view's similarity to the label prompts."""
    if fusion_weight in (0, 1):  # 0: no class is ranked by its transport
        return views.new_zeros(len(views), len(label))
    return (1 - fusion_weight) / fusion_weight * views[:, 0] @ label.T


def _check_prunable(trained: bool, solver: dict) -> None:
    """Raises ValueError where bounds on exact transport say nothing, or where a gradient is wanted of them."""
    if solver["solver"] != "exact":
        raise ValueError(
            f"aggregator.prune bounds the cost of exact transport, got aggregator.solver={solver['solver']}: an entropic plan costs more "
            "the larger epsilon is, so the bounds leave many classes open (a quarter at 0.05, 40 % at 0.1 on random features), and "
            "unbalanced and partial plans obey no such bound. Use aggregator.solver=exact or aggregator.prune=false"
        )
    if trained and torch.is_grad_enabled():
        raise ValueError("aggregator.prune gives bounds, which have no gradient, for most classes; use aggregator.prune=false to train")
