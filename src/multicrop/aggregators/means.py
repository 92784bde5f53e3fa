"""Means of features and of similarities, maxima, and means of the best similarities."""

from typing import Annotated

import torch
from torch import Tensor

from multicrop.aggregators import pools
from multicrop.aggregators.base import MAX_ELEMENTS, Logits, Views, block_scores, prompt_mean, select_texts, select_views, view_logits
from multicrop.aggregators.declared import aggregator
from multicrop.config.ranges import Count, Elements, OneOf, TextSet, ViewSet
from multicrop.text import TextBank

EACH = ("prompt", "view", "both")
Each = Annotated[str, OneOf(EACH)]


@aggregator(labels_only=True)
def global_view(views: Views, text: TextBank, logit_scale: float) -> Logits:
    """Score the global view against the label prompts (CLIP, ICML 2021): logit_scale * <v0, t0_c>.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).

    Returns:
        Logits, shape (batch, classes).
    """
    return logit_scale * views[:, 0] @ text.label.T


def mean_feature(
    views: Views, text: TextBank, logit_scale: float, *, view_set: ViewSet = "crops", text_set: TextSet = "descriptions"
) -> Logits:
    """Score the normalised mean view against the normalised mean prompt of each class.

    logit_scale * <norm(mean_k V_k), norm(mean_m T_cm)>.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If `view_set` or `text_set` is none of these, or a class has no description and descriptions are read.
    """
    text = text.select(text_set)
    image = pools.mean(select_views(views, view_set))
    return logit_scale * image @ pools.mean(text.features, text.mask).T


def mean_similarity(
    views: Views, text: TextBank, logit_scale: float, *, view_set: ViewSet = "crops", text_set: TextSet = "descriptions"
) -> Logits:
    """Average the similarity over all pairs of a view and a prompt (DCLIP, ICLR 2023, with the global view only).

    logit_scale * mean_k mean_m <V_k, T_cm>, computed as the similarity of the mean view to the mean prompt, neither normalised.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If `view_set` or `text_set` is none of these, or a class has no description and descriptions are read.
    """
    mean_view = select_views(views, view_set).mean(1, keepdim=True)
    return view_logits(mean_view, text.select(text_set), logit_scale).squeeze(1)


def max(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    view_set: ViewSet = "crops",
    text_set: TextSet = "descriptions",
    each: Each = "prompt",
    max_elements: Elements = MAX_ELEMENTS,
) -> Logits:
    """Average the best similarity per prompt or per view: late interaction (FILIP, ICLR 2022; ColBERT, SIGIR 2020).

    logit_scale * mean_m max_k <V_k, T_cm> for ``each="prompt"``, logit_scale * mean_k max_m <V_k, T_cm> for ``each="view"``.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.
        each: ``"prompt"`` (best view of each prompt), ``"view"`` (best prompt of each view) or ``"both"``, their mean.
        max_elements: Most similarities in memory at once.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If `view_set` or `text_set` is none of these, a class has no description and descriptions
            are read, or `each` is unknown.
    """
    if each not in EACH:
        raise ValueError(f"aggregator.each is prompt, view or both, got {each!r}")

    def score(scores: Tensor, text: TextBank) -> Logits:
        if each == "prompt":
            return prompt_mean(scores.amax(2), text)
        by_view = scores.masked_fill(~text.mask[:, None], -torch.inf).amax(3).mean(2)
        return by_view if each == "view" else (by_view + prompt_mean(scores.amax(2), text)) / 2

    return logit_scale * block_scores(score, select_views(views, view_set), select_texts(text, text_set), max_elements)


def topk(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    k: Count = 5,
    view_set: ViewSet = "crops",
    text_set: TextSet = "descriptions",
    max_elements: Elements = MAX_ELEMENTS,
) -> Logits:
    """Average the k highest similarities of any view to any prompt of the class, times logit_scale.

    A class with fewer than k pairs takes all of them.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        k: Pairs of a view and a prompt, 1 or more.
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.
        max_elements: Most similarities in memory at once.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If `view_set` or `text_set` is none of these, a class has no description and descriptions
            are read, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"aggregator.k is 1 or more pairs, got {k}")

    def score(scores: Tensor, text: TextBank) -> Logits:
        pairs = scores.masked_fill(~text.mask[:, None], -torch.inf).flatten(2)
        best = pairs.topk(min(k, pairs.shape[2])).values
        counts = (scores.shape[2] * text.mask.sum(1)).clamp(max=k)
        return torch.where(best.isfinite(), best, 0).sum(2) / counts

    return logit_scale * block_scores(score, select_views(views, view_set), select_texts(text, text_set), max_elements)
