"""What all aggregators share: types, the choice of views, similarities in bounded memory, per-view logits and entropies."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators.pools import masked_mean
from multicrop.text import TextBank

Views = Float[Tensor, "batch views dim"]
Logits = Float[Tensor, "batch classes"]
MAX_ELEMENTS = 2**21  # similarities held at once: 8 MiB


def select_views(views: Views, view_set: str) -> Float[Tensor, "batch selected dim"]:
    """Select the views that an aggregator reads.

    Args:
        views: View features, shape (batch, views, dim); view 0 is the global view.
        view_set: ``"all"``, or ``"crops"``, which leaves the global view out where there is any crop.

    Returns:
        The selected views, shape (batch, selected, dim).

    Raises:
        ValueError: If `view_set` is neither.
    """
    if view_set not in ("all", "crops"):
        raise ValueError(f"view_set is all or crops, got {view_set!r}")
    return views if view_set == "all" or views.shape[1] == 1 else views[:, 1:]


def select_texts(text: TextBank, text_set: str) -> TextBank:
    """The label prompts, the descriptions or all prompts; features are contiguous, so that no product copies them, and padding is 0."""
    chosen = text.select(text_set)
    features = chosen.features if chosen.mask.all() else torch.where(chosen.mask[..., None], chosen.features, 0)
    return TextBank(features.contiguous(), chosen.mask, chosen.prompts)


def similarities(views: Views, text: TextBank) -> Float[Tensor, "batch classes views prompts"]:
    """Cosine similarity of every view to every prompt, padding included."""
    return torch.einsum("bkd,cmd->bckm", views, text.features)


def chunks(count: int, elements_each: int, max_elements: int) -> list[slice]:
    """Slices of `count` items with at most `max_elements` elements each, or of one item where one has more."""
    check_positive(max_elements=max_elements)
    at_once = max_elements // elements_each or 1
    return [slice(first, min(first + at_once, count)) for first in range(0, count, at_once)]


def blocks(views: Views, text: TextBank, max_elements: int) -> list[tuple[slice, list[slice]]]:
    """Slices of images, each with its slices of classes, so that a block of images x classes has at most `max_elements` similarities.

    Classes are split only where one image exceeds that; a block is one image and one class at least.
    """
    n_classes, n_prompts = text.mask.shape
    images = chunks(len(views), n_classes * views.shape[1] * n_prompts, max_elements)
    return [(some, chunks(n_classes, (some.stop - some.start) * views.shape[1] * n_prompts, max_elements)) for some in images]


def block_scores(score: Callable[[Tensor, TextBank], Logits], views: Views, text: TextBank, max_elements: int) -> Logits:
    """`score(similarities, text)` of all images and classes, computed in blocks of at most `max_elements` similarities."""
    rows = []
    for images, parts in blocks(views, text, max_elements):
        some = [classes_of(text, part) for part in parts]
        rows.append(torch.cat([score(similarities(views[images], classes), classes) for classes in some], 1))
    return torch.cat(rows)


def classes_of(text: TextBank, part: slice | Sequence[int]) -> TextBank:
    """The texts of some of the classes."""
    if isinstance(part, slice):
        return TextBank(text.features[part], text.mask[part], text.prompts[part])
    rows = list(part)
    return TextBank(text.features[rows], text.mask[rows], [text.prompts[row] for row in rows])


def view_logits(views: Views, text: TextBank, logit_scale: float) -> Float[Tensor, "batch views classes"]:
    """The logits of each view: logit_scale times its mean similarity to the prompts of a class.

    Args:
        views: Unit-norm features, shape (batch, views, dim).
        text: Text bank.
        logit_scale: Multiplier of cosine similarities.

    Returns:
        Logits, shape (batch, views, classes).
    """
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
    """Raise ValueError, naming the knob, where one is not above 0."""
    for name, value in knobs.items():
        if not value > 0:
            raise ValueError(f"aggregator.{name} must be above 0, got {value}")


def fuse(global_logits: Logits, logits: Logits, weight: float) -> Logits:
    """(1 - weight) * the global view's logits + weight * the aggregator's.

    Args:
        global_logits: Logits of the global view, shape (batch, classes).
        logits: Logits of the aggregator, shape (batch, classes).
        weight: Weight of the aggregator, 0 to 1; with 1 the global view is not read.

    Returns:
        Logits, shape (batch, classes).
    """
    return logits if weight == 1 else (1 - weight) * global_logits + weight * logits
