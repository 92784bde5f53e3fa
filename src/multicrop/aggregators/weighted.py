"""Similarity-weighted matching: WCA's two weighted pools, and ABS's soft matching."""

import torch

from multicrop.aggregators import pools
from multicrop.aggregators.base import MAX_ELEMENTS, Logits, Views, check_positive, chunks, select_texts, select_views, similarities
from multicrop.config.ranges import Elements, LogScale, Positive, TextSet, ViewSet
from multicrop.text import TextBank


def wca(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    log_image_scale: LogScale = 4.0,
    log_text_scale: LogScale = 2.0,
    renormalise: bool = True,
    text_set: TextSet = "descriptions",
) -> Logits:
    """Score crops weighted by the global view against prompts weighted by the label prompt (WCA, ICML 2024).

    w = softmax over the crops, without view 0, of e^log_image_scale <v0, V_k>; v_c = softmax over the class's prompts of
    e^log_text_scale <t0_c, T_cm>; logits = logit_scale * sum_k sum_m w_k v_cm <V_k, T_cm>.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        log_image_scale: Logarithm of the scale of the crop weights.
        log_text_scale: Logarithm of the scale of the prompt weights.
        renormalise: Whether the two weighted sums are made unit norm, as in the authors' code; false: the double sum of their paper.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If `text_set` is none of these, or a class has no description and descriptions are read.
    """
    chosen, crops = text.select(text_set), select_views(views, "crops")
    image = pools.weighted_sum(crops, pools.similarity_weights(crops, views[:, 0], log_scale=log_image_scale))
    weights = pools.similarity_weights(chosen.features, text.label, chosen.mask, log_scale=log_text_scale)
    classes = pools.weighted_sum(torch.where(chosen.mask[..., None], chosen.features, 0), weights)
    if renormalise:
        image, classes = torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(classes, dim=-1)
    return logit_scale * image @ classes.T


def soft_match(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    temperature: Positive = 0.03,
    view_set: ViewSet = "crops",
    text_set: TextSet = "descriptions",
    max_elements: Elements = MAX_ELEMENTS,
) -> Logits:
    """Divide each view among all prompts of all classes by softmax, and sum per class (ABS, ICML 2025, after the authors' code).

    sum_k sum_m A[k,c,m] * S[k,c,m] / temperature, with A[k] the softmax of S[k] / temperature over all prompts. That code also computes
    WCA's crop weights and does not use them.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Not read: the temperature replaces it.
        temperature: Temperature of the softmax over similarities, above 0 (the authors': 0.03).
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.
        max_elements: Most similarities in memory at once, but never fewer than those of one view to all prompts.

    Returns:
        Logits, shape (batch, classes), on a scale of their own that grows with the number of views.

    Raises:
        ValueError: If `view_set` or `text_set` is none of these, a class has no description and descriptions
            are read, or the temperature is not above 0.
    """
    check_positive(temperature=temperature)
    text, chosen = select_texts(text, text_set), select_views(views, view_set)
    rows = chosen.flatten(0, 1)
    shared = [_shared_out(rows[some, None], text, temperature) for some in chunks(len(rows), text.mask.numel(), max_elements)]
    return torch.cat(shared).view(*chosen.shape[:2], -1).sum(1)


def _shared_out(views: Views, text: TextBank, temperature: float) -> Logits:
    """The share of each single view that goes to every class."""
    scores = similarities(views, text).squeeze(2) / temperature
    masked = scores.masked_fill(~text.mask, -torch.inf)
    attention = masked.flatten(1).softmax(-1).view_as(scores)
    return torch.where(text.mask, attention * scores, 0).sum(2)
