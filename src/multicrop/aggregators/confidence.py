"""Views weighted by their confidence: a vote of the most confident (ZERO), an entropy-weighted mean (after AWT)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from multicrop.aggregators.base import Logits, Views, check_positive, entropies, select_views, view_logits
from multicrop.config.ranges import Positive, Share, TextSet, ViewSet
from multicrop.text import TextBank

UNVOTED = 1e-6  # votes of a class without votes, so that the logarithm of its share is finite


class Ballot(NamedTuple):
    """Per-view logits, most confident view first, and how many of these views vote."""

    logits: Float[Tensor, "batch views classes"]
    kept: int


def kept_views(n_views: int, share: float) -> int:
    """max(1, floor(share * n_views)), safe against a product like 28.999999; raises ValueError for a share outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"aggregator.keep (a method's share) is a share of the views, above 0 and at most 1, got {share}")
    return int(share * n_views + 1e-9) or 1


def vote(
    views: Views, text: TextBank, logit_scale: float, *, keep: Share = 0.3, view_set: ViewSet = "all", text_set: TextSet = "label"
) -> Logits:
    """Take a majority vote of the share `keep` of the views with the lowest entropy (ZERO, NeurIPS 2024).

    A tie goes to the first discarded view, by confidence, whose first choice is a tied class; failing that, to the tied class with the
    larger logit in the most confident discarded view (the authors' code returns the first class on ties, against the paper). Where
    no view is discarded, the most confident view decides (our choice).

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        keep: Share of the views that vote, above 0 and at most 1.
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.

    Returns:
        Logarithm of each class's share of the votes, shape (batch, classes); its scale is not the cosine's. The winner of a tie has half
        a vote more.

    Raises:
        ValueError: If `view_set` or `text_set` is none of these, a class has no description and descriptions
            are read, or `keep` is out of range.
    """
    logits = view_logits(select_views(views, view_set), text.select(text_set), logit_scale)
    order = entropies(logits).argsort(dim=1, stable=True)
    ballot = Ballot(logits.gather(1, order[..., None].expand_as(logits)), kept_views(logits.shape[1], keep))
    votes = one_hot(ballot.logits[:, : ballot.kept].argmax(2), logits.shape[2]).sum(1).to(logits.dtype)
    tied = votes == votes.amax(1, keepdim=True)
    winner = one_hot(tie_break(ballot, tied), logits.shape[2]).to(votes.dtype)
    votes = votes + 0.5 * winner * (tied.sum(1, keepdim=True) > 1)
    return ((votes + UNVOTED) / ballot.kept).log()


def tie_break(ballot: Ballot, tied: Bool[Tensor, "batch classes"]) -> Tensor:
    """The winning class (batch) among the tied ones, by the views that do not vote; see `vote`."""
    discarded = ballot.logits[:, ballot.kept :]
    if not discarded.shape[1]:
        discarded = ballot.logits[:, :1]
    choices = discarded.argmax(2)
    names_a_tied_class = tied.gather(1, choices)
    first = choices.gather(1, names_a_tied_class.int().argmax(1, keepdim=True)).squeeze(1)
    larger = discarded[:, 0].masked_fill(~tied, -torch.inf).argmax(1)
    return torch.where(names_a_tied_class.any(1), first, larger)


def entropy(
    views: Views, text: TextBank, logit_scale: float, *, temperature: Positive = 0.5, view_set: ViewSet = "all", text_set: TextSet = "all"
) -> Logits:
    """Average the per-view logits, weighted by softmax(-entropy / temperature) over the views.

    After AWT (NeurIPS 2024), which uses these weights as marginals of its transport, not for a mean. Gradients flow through the weights.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        temperature: Temperature of the softmax over entropies, nats, above 0.
        view_set: ``"crops"`` (the global view is left out where there is any crop) or ``"all"``.
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If `view_set` or `text_set` is none of these, a class has no description and descriptions
            are read, or the temperature is not above 0.
    """
    check_positive(temperature=temperature)
    logits = view_logits(select_views(views, view_set), text.select(text_set), logit_scale)
    weights = (-entropies(logits) / temperature).softmax(1)
    return (weights[..., None] * logits).sum(1)
