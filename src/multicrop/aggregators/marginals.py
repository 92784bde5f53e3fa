"""Masses on crops and prompts for optimal transport: uniform, similarity (WCA), entropy (AWT), best_match (ours)."""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop import transport
from multicrop.aggregators import pools
from multicrop.aggregators.base import Logits, Views, check_positive, entropies, prompt_mean, select_views, similarities, view_logits
from multicrop.config.ranges import OneOf
from multicrop.text import TextBank

MARGINALS = ("uniform", "similarity", "entropy", "best_match")
Marginal = Annotated[str, OneOf(MARGINALS)]
SOURCE_TEMPERATURES = {"similarity": (math.exp(-4), math.exp(-2)), "entropy": (0.5, 0.5), "best_match": (0.03, 0.03)}


def view_marginal(
    views: Views, text: TextBank, logit_scale: float, *, name: str, temperature: float | None, view_set: str
) -> Float[Tensor, "batch selected"]:
    """The mass of each selected view; 1 in all.

    `uniform`; `similarity`: softmax(<v0, V_k> / temperature) over the crops (WCA); `entropy`: softmax(-H_k / temperature) of the per-view
    logits' entropies in nats (AWT); `best_match`: softmax(best similarity to any prompt of any class / temperature) (ours). A
    temperature of None is the source's: e^-4, 0.5, and 0.03 (ours). Raises ValueError for another name, and for `similarity` over a set
    that holds view 0, which would take nearly all the mass.
    """
    temperature = _temperature(name, temperature, side=0)
    chosen = select_views(views, view_set)
    if name == "uniform":
        return chosen.new_full(chosen.shape[:2], 1 / chosen.shape[1])
    if name == "entropy":
        return (-entropies(view_logits(chosen, text, logit_scale)) / temperature).softmax(-1)
    if name == "best_match":
        return (_best_prompt(chosen, text) / temperature).softmax(-1)
    if view_set == "all" and views.shape[1] > 1:
        raise ValueError(
            "aggregator.view_marginal=similarity weighs crops by the global view and leaves it out; use aggregator.view_set=crops"
        )
    return pools.similarity_weights(chosen, views[:, 0], log_scale=-math.log(temperature))


def prompt_marginal(
    views: Views,
    text: TextBank,
    label: Float[Tensor, "classes dim"],
    logit_scale: float,
    *,
    name: str,
    temperature: float | None,
    view_set: str,
) -> Float[Tensor, "batch classes prompts"]:
    """The mass of each prompt of `text` within its class; 1 for each class, 0 on padding.

    `uniform`; `similarity`: softmax(<t0_c, T_cm> / temperature) (WCA); `entropy`: softmax(-H_cm / temperature), see `prompt_entropies`
    (AWT); `best_match`: softmax(best similarity to any selected view / temperature) (ours). A temperature of None is the source's: e^-2,
    0.5, and 0.03 (ours). Raises ValueError for another name.
    """
    temperature = _temperature(name, temperature, side=1)
    if name == "uniform":
        return transport.uniform_marginal(text.mask, views.dtype).expand(len(views), -1, -1)
    if name == "similarity":
        weights = pools.similarity_weights(text.features, label, text.mask, log_scale=-math.log(temperature))
        return weights.expand(len(views), -1, -1)
    if name == "entropy":
        worth = -prompt_entropies(logit_scale * similarities(views[:, :1], text).squeeze(2), text)
    else:
        worth = _best_view(select_views(views, view_set), text)
    return (worth / temperature).masked_fill(~text.mask, -torch.inf).softmax(-1)


def _best_prompt(views: Views, text: TextBank) -> Float[Tensor, "batch views"]:
    """The similarity of each view to the nearest prompt of any class, one slot of the classes after the other to save memory."""
    best = views.new_full(views.shape[:2], -torch.inf)
    for features, mask in zip(text.features.unbind(1), text.mask.unbind(1), strict=True):
        if mask.any():
            best = torch.maximum(best, (views @ features[mask].T).amax(-1))
    return best


def _best_view(views: Views, text: TextBank) -> Float[Tensor, "batch classes prompts"]:
    """The similarity of each prompt to the nearest view, one view after the other to save memory."""
    best = similarities(views[:, :1], text).squeeze(2)
    for k in range(1, views.shape[1]):
        best = torch.maximum(best, similarities(views[:, k : k + 1], text).squeeze(2))
    return best


def prompt_entropies(logits: Float[Tensor, "batch classes prompts"], text: TextBank) -> Float[Tensor, "batch classes prompts"]:
    """H_cm: the entropy in nats of the class means with class c's entry replaced by its m-th prompt alone (AWT); padding holds anything.

    Of Z = sum e^l and U = sum l e^l one term changes, so an entry costs O(1), where the authors build prompts x classes x classes an
    image. The difference cancels when the replaced class is the largest: that class is recomputed over all classes.
    """
    means = prompt_mean(logits, text)
    top = means.amax(1, keepdim=True)
    old, new = (means - top)[..., None], logits - top[..., None]
    mass, moment = old.exp().sum(1, keepdim=True), (old * old.exp()).sum(1, keepdim=True)
    shift = new.clamp_min(0)
    z = (mass - old.exp()) * (-shift).exp() + (new - shift).exp()
    u = (moment - old * old.exp()) * (-shift).exp() + new * (new - shift).exp()
    cheap = shift + z.log() - u / z
    largest = means.argmax(1)
    return cheap.scatter(1, largest[:, None, None].expand(-1, 1, logits.shape[2]), _recomputed(means, logits, largest)[:, None])


def _recomputed(means: Logits, logits: Float[Tensor, "batch classes prompts"], largest: Tensor) -> Float[Tensor, "batch prompts"]:
    """The entropies of one class an image, over all classes."""
    n_prompts = logits.shape[2]
    entries = logits.gather(1, largest[:, None, None].expand(-1, 1, n_prompts)).squeeze(1)
    replaced = means[:, None].expand(-1, n_prompts, -1).scatter(2, largest[:, None, None].expand(-1, n_prompts, 1), entries[..., None])
    return entropies(replaced)


def _temperature(name: str, temperature: float | None, *, side: int) -> float:
    side_name = ("view", "prompt")[side]
    if name not in MARGINALS:
        raise ValueError(f"aggregator.{side_name}_marginal is one of {', '.join(MARGINALS)}, got {name!r}")
    if temperature is None:
        return SOURCE_TEMPERATURES.get(name, (1.0, 1.0))[side]
    check_positive(**{f"{side_name}_temperature": temperature})
    return temperature
