"""What a few-shot adapter is: fitted on a labelled support set, selected on validation images, then a function of views and logits."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop import pools
from multicrop.aggregators import Logits, Views, select_views
from multicrop.prompts import TextBank


@dataclass(frozen=True)
class Examples:
    """Labelled views, and the class logits that the aggregator gives them."""

    views: Float[Tensor, "n views dim"]
    logits: Float[Tensor, "n classes"]
    labels: Int[Tensor, " n"]


@runtime_checkable
class Score(Protocol):
    """The aggregator at work: class logits of views against `text`, fused with the global view's; differentiable in both."""

    text: TextBank

    def __call__(self, views: Views) -> Logits:
        """Class logits."""


class Adapter(nn.Module):
    """`fit` learns from the support set and chooses its hyper-parameters on the validation set; `selection` says how.

    Every adapter is given the prompts' features, the logit scale and the score that made the logits, whether it reads them or not.
    """

    selection: dict[str, object]

    def __init__(self, *, text: TextBank, logit_scale: float, score: Score) -> None:
        super().__init__()
        self.text, self.logit_scale, self.score, self.selection = text, logit_scale, score, {}

    def fit(self, support: Examples, validation: Examples) -> None:
        """Learn; test images are nowhere near."""
        raise NotImplementedError

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Adapted class logits of views whose text logits are `logits`."""
        raise NotImplementedError


def with_text(score: Score, text: TextBank) -> Score:
    """The same score against other prompt features."""
    changed = copy.copy(score)
    changed.text = text
    return changed


def pooled(views: Views, view_set: str) -> Float[Tensor, "batch dim"]:
    """One unit feature an image: the normalised mean of the chosen views."""
    return pools.mean(select_views(views, view_set))


def samples(support: Examples, view_set: str, unit: str) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    """Features and labels to learn from: one pooled feature an image (`images`), or every chosen view by itself (`views`)."""
    if unit not in ("images", "views"):
        raise ValueError(f"adapter.samples is images (pooled) or views (each by itself), got {unit!r}")
    if unit == "images":
        return pooled(support.views, view_set), support.labels
    chosen = select_views(support.views, view_set)
    return chosen.flatten(0, 1), support.labels.repeat_interleave(chosen.shape[1])


def class_sums(x: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], n_classes: int) -> tuple[Float[Tensor, "classes dim"], Tensor]:
    """Sum of each class's members and their numbers (classes, 1); raises ValueError when a class has none."""
    members = F.one_hot(labels, n_classes).to(x.dtype)
    count = members.sum(0)[:, None]
    if empty := (count[:, 0] == 0).nonzero()[:, 0].tolist():
        raise ValueError(
            f"the adapter needs one readable support image a class or more; {len(empty)} of {n_classes} classes have none, "
            f"at positions {empty[:3]}. Mend the images, raise task.shots, or use adapter=tip_adapter, which does without"
        )
    return members.T @ x, count


def accuracy(logits: Logits, labels: Int[Tensor, " batch"]) -> float:
    """Top-1, in 0-1."""
    return (logits.argmax(1) == labels).float().mean().item()


@torch.no_grad()
def select(candidates: Iterable[dict[str, float]], logits: Callable[..., Logits], validation: Examples) -> dict[str, object]:
    """The record of a choice among hyper-parameters: `chosen` does best on the validation images, ties to the first.

    `logits` gives the validation logits under the hyper-parameters of one candidate. A single candidate is `fixed`.
    """
    curve = [{**knobs, "accuracy": accuracy(logits(**knobs), validation.labels)} for knobs in candidates]
    best = max(curve, key=lambda point: point["accuracy"])
    return {"how": "validation" if len(curve) > 1 else "fixed", "images": len(validation.labels), "chosen": best, "curve": curve}
