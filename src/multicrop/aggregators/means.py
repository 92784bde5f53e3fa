"""Means and maxima: of features, of all similarities, of the best ones."""

import torch
from torch import Tensor

from multicrop.aggregators import pools
from multicrop.aggregators.base import MAX_ELEMENTS, Logits, Views, block_scores, prompt_mean, select_texts, select_views, view_logits
from multicrop.text import TextBank


def global_view(views: Views, text: TextBank, logit_scale: float) -> Logits:
    """The global view against the label prompts (CLIP)."""
    return logit_scale * views[:, 0] @ text.label.T


def mean_feature(views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str) -> Logits:
    """The normalised mean view against the normalised mean prompt of each class."""
    text = text.select(text_set)
    image = pools.mean(select_views(views, view_set))
    return logit_scale * image @ pools.mean(text.features, text.mask).T


def mean_similarity(views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str) -> Logits:
    """logit_scale times the mean similarity over all pairs of a view and a prompt (DCLIP, ICLR 2023, has the global view alone).

    The mean of the pairs is the similarity of the mean view to the mean prompt, neither normalised: no pair is ever computed.
    """
    mean_view = select_views(views, view_set).mean(1, keepdim=True)
    return view_logits(mean_view, text.select(text_set), logit_scale).squeeze(1)


def max(
    views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str, each: str, max_elements: int = MAX_ELEMENTS
) -> Logits:
    """Late interaction (FILIP, ColBERT): the best view of each prompt, averaged over prompts; or the converse.

    `each` is `prompt` (best view for each prompt), `view` (best prompt for each view) or `both`, their mean. At most `max_elements`
    similarities are in memory at once.
    """
    if each not in ("prompt", "view", "both"):
        raise ValueError(f"aggregator.each is prompt, view or both, got {each!r}")

    def score(scores: Tensor, text: TextBank) -> Logits:
        if each == "prompt":
            return prompt_mean(scores.amax(2), text)
        by_view = scores.masked_fill(~text.mask[:, None], -torch.inf).amax(3).mean(2)
        return by_view if each == "view" else (by_view + prompt_mean(scores.amax(2), text)) / 2

    return logit_scale * block_scores(score, select_views(views, view_set), select_texts(text, text_set), max_elements)


def topk(
    views: Views, text: TextBank, logit_scale: float, *, k: int, view_set: str, text_set: str, max_elements: int = MAX_ELEMENTS
) -> Logits:
    """logit_scale times the mean of the k highest similarities of any view to any prompt of the class.

    A class with fewer than k pairs takes all it has. At most `max_elements` similarities are in memory at once. Raises ValueError when k is
    below 1.
    """
    if k < 1:
        raise ValueError(f"aggregator.k is 1 or more pairs, got {k}")

    def score(scores: Tensor, text: TextBank) -> Logits:
        pairs = scores.masked_fill(~text.mask[:, None], -torch.inf).flatten(2)
        best = pairs.topk(min(k, pairs.shape[2])).values
        counts = (scores.shape[2] * text.mask.sum(1)).clamp(max=k)
        return torch.where(best.isfinite(), best, 0).sum(2) / counts

    return logit_scale * block_scores(score, select_views(views, view_set), select_texts(text, text_set), max_elements)
