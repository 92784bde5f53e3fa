"""Similarity-weighted matching: WCA's two weighted pools, and ABS's soft matching."""

import torch

from multicrop.aggregators import pools
from multicrop.aggregators.base import MAX_ELEMENTS, Logits, Views, check_positive, chunks, select_texts, select_views, similarities
from multicrop.text import TextBank


def wca(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    log_image_scale: float,
    log_text_scale: float,
    renormalise: bool,
    text_set: str,
) -> Logits:
    """Crops weighted by their similarity to the global view against prompts weighted by theirs to the label prompt (WCA, ICML 2024).

    w = softmax over the crops, without view 0, of e^log_image_scale <v0, V_k>; v_c = softmax over the class's prompts of
    e^log_text_scale <t0_c, T_cm>. With `renormalise` the two weighted sums are made unit norm, as the authors' code does; without, the
    logits are the double sum s * sum_k sum_m w_k v_cm S[k,c,m] of the paper and README.
    """
    chosen, crops = text.select(text_set), select_views(views, "crops")
    image = pools.weighted_sum(crops, pools.similarity_weights(crops, views[:, 0], log_scale=log_image_scale))
    weights = pools.similarity_weights(chosen.features, text.label, chosen.mask, log_scale=log_text_scale)
    classes = pools.weighted_sum(chosen.features, weights)
    if renormalise:
        image, classes = torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(classes, dim=-1)
    return logit_scale * image @ classes.T


def soft_match(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    temperature: float,
    view_set: str,
    text_set: str,
    max_elements: int = MAX_ELEMENTS,
) -> Logits:
    """Sum over views and a class's prompts of A * S / temperature, A each view's softmax of S / temperature over all prompts.

    After the authors' code of ABS (ICML 2025), temperature 0.03; that code also computes WCA's crop weights and does not use them. The
    temperature takes the part of logit_scale, which is not read: the scale of these logits is their own, and it grows with the views. At
    most `max_elements` similarities are in memory at once, and never fewer than those of one view to all prompts, which share it.
    """
    check_positive(temperature=temperature)
    text, chosen = select_texts(text, text_set), select_views(views, view_set)
    rows = chosen.flatten(0, 1)
    shared = [_shared_out(rows[some, None], text, temperature) for some in chunks(len(rows), text.mask.numel(), max_elements)]
    return torch.cat(shared).view(*chosen.shape[:2], -1).sum(1)


def _shared_out(views: Views, text: TextBank, temperature: float) -> Logits:
    """One view each: what it gives to every class."""
    scores = similarities(views, text).squeeze(2) / temperature
    masked = scores.masked_fill(~text.mask, -torch.inf)
    attention = masked.flatten(1).softmax(-1).view_as(scores)
    return torch.where(text.mask, attention * scores, 0).sum(2)
