"""What all aggregators share: the types, the choice of views, similarities, per-view logits and their entropy."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.pools import masked_mean
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


def view_logits(views: Views, text: TextBank, logit_scale: float) -> Float[Tensor, "batch views classes"]:
    """The logits of every view on its own: logit_scale times its mean similarity to a class's prompts."""
    weight = text.mask.to(text.features.dtype) / text.mask.sum(-1, keepdim=True)
    return logit_scale * views @ torch.einsum("cm,cmd->cd", weight, torch.where(text.mask[..., None], text.features, 0)).T


def prompt_mean(scores: Float[Tensor, "batch classes prompts"], text: TextBank) -> Logits:
    """The mean over the real prompts of each class."""
    return masked_mean(scores, text.mask)


def entropies(logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """The entropy in nats of softmax(logits)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def check_positive(**knobs: int | float) -> None:
    """Raises ValueError, naming the knob, when one is not above 0."""
    for name, value in knobs.items():
        if not value > 0:
            raise ValueError(f"aggregator.{name} is above 0, got {value}")


def fuse(global_logits: Logits, logits: Logits, weight: float) -> Logits:
    """(1 - weight) * the global view's logits + weight * the aggregator's; weight 1 is purely local."""
    return logits if weight == 1 else (1 - weight) * global_logits + weight * logits
