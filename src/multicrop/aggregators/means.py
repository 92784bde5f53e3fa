"""Means and maxima: of features, of all similarities, of the best ones."""

import torch

from multicrop import pools
from multicrop.aggregators.base import Logits, Views, prompt_mean, select_views, similarities
from multicrop.prompts import TextBank


def global_view(views: Views, text: TextBank, logit_scale: float) -> Logits:
    """The global view against the label prompts (CLIP)."""
    return logit_scale * views[:, 0] @ text.label.T


def mean_feature(views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str) -> Logits:
    """The normalised mean view against the normalised mean prompt of each class."""
    text = text.select(text_set)
    image = pools.mean(select_views(views, view_set))
    return logit_scale * image @ pools.mean(text.features, text.mask).T


def mean_similarity(views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str) -> Logits:
    """logit_scale times the mean similarity over all pairs of a view and a prompt (DCLIP, ICLR 2023, has the global view alone)."""
    text = text.select(text_set)
    scores = similarities(select_views(views, view_set), text)
    return logit_scale * prompt_mean(scores.mean(2), text)


def max(views: Views, text: TextBank, logit_scale: float, *, view_set: str, text_set: str, each: str) -> Logits:
    """Late interaction (FILIP, ColBERT): the best view of each prompt, averaged over prompts; or the converse.

    `each` is `prompt` (best view for each prompt), `view` (best prompt for each view) or `both`, their mean.
    """
    if each not in ("prompt", "view", "both"):
        raise ValueError(f"aggregator.each is prompt, view or both, got {each!r}")
    text = text.select(text_set)
    scores = similarities(select_views(views, view_set), text)
    masked = scores.masked_fill(~text.mask[:, None], -torch.inf)
    by_prompt = prompt_mean(scores.amax(2), text)
    by_view = masked.amax(3).mean(2)
    return logit_scale * {"prompt": by_prompt, "view": by_view, "both": (by_prompt + by_view) / 2}[each]


def topk(views: Views, text: TextBank, logit_scale: float, *, k: int, view_set: str, text_set: str) -> Logits:
    """logit_scale times the mean of the k highest similarities of any view to any prompt of the class.

    A class with fewer than k pairs takes all it has. Raises ValueError when k is below 1.
    """
    if k < 1:
        raise ValueError(f"aggregator.k is 1 or more pairs, got {k}")
    text = text.select(text_set)
    scores = similarities(select_views(views, view_set), text)
    pairs = scores.masked_fill(~text.mask[:, None], -torch.inf).flatten(2)
    best = pairs.topk(min(k, pairs.shape[2])).values
    counts = (scores.shape[2] * text.mask.sum(1)).clamp(max=k)
    return logit_scale * torch.where(best.isfinite(), best, 0).sum(2) / counts
