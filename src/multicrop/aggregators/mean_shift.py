"""MTA: the mode of the views, found by mean shift with learned inlierness scores."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from multicrop.aggregators import pools
from multicrop.aggregators.base import Logits, Views, check_positive
from multicrop.aggregators.confidence import kept_views
from multicrop.config.ranges import Count, Positive, Share, TextSet, Weight
from multicrop.text import TextBank

SMALLEST_BANDWIDTH = 1e-8  # squared; identical views have none


def mta(
    views: Views,
    text: TextBank,
    logit_scale: float,
    *,
    text_set: TextSet = "label",
    neighbours: Share = 0.3,
    affinity_weight: Weight = 4.0,
    temperature: Positive = 0.2,
    rounds: Count = 5,
    steps: Count = 5,
) -> Logits:
    """Score the mode of the views against each class's normalised mean prompt (MTA, CVPR 2024).

    From v0 and equal inlierness y, `rounds` times: the kernel density at the mode once; `steps` updates
    y = softmax((density + affinity_weight * A y) / temperature) with A = P P^T of the per-view class probabilities; `steps` updates of
    the mode, the normalised sum of y * density * V, with a new density each time. The authors stop an inner loop when it moves less
    than 1e-6, and their bandwidth is NaN below 5 views (no neighbour); here inner loops run to their end with one neighbour at least.

    Args:
        views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
        text: Text bank; prompt 0 of each class is its label prompt.
        logit_scale: Multiplier of cosine similarities (100 for OpenAI CLIP).
        text_set: Prompts of each class: ``"label"``, ``"descriptions"`` (or of these ``"local"``, ``"global"``, ``"both"``) or ``"all"``.
        neighbours: Share of the other views that sets a view's bandwidth, above 0 and at most 1.
        affinity_weight: Weight of the agreement between views in their inlierness.
        temperature: Temperature of the softmax over inlierness, above 0.
        rounds: Updates of inlierness and mode, 1 or more.
        steps: Updates of inlierness, and of the mode, per round, 1 or more.

    Returns:
        Logits, shape (batch, classes).

    Raises:
        ValueError: If a knob is out of range, or a class has no description and descriptions are read.
    """
    check_positive(temperature=temperature, rounds=rounds, steps=steps)
    text, given = text.select(text_set), views.dtype
    views = views.to(torch.promote_types(given, torch.float32))  # a bandwidth is too small for half precision
    prototypes = pools.mean(text.features.to(views.dtype), text.mask)
    probability = (logit_scale * views @ prototypes.T).softmax(-1)
    affinity = probability @ probability.mT
    bandwidth, mode = squared_bandwidth(views, neighbours), views[:, 0]
    inlierness = views.new_full(views.shape[:2], 1 / views.shape[1])
    for _ in range(rounds):
        density = kernel_density(views, mode, bandwidth)
        for _ in range(steps):
            pull = (affinity @ inlierness[..., None]).squeeze(-1)
            inlierness = ((density + affinity_weight * pull) / temperature).softmax(-1)
        for _ in range(steps):
            weight = inlierness * kernel_density(views, mode, bandwidth)
            mode = F.normalize(pools.weighted_sum(views, weight / weight.sum(-1, keepdim=True)), dim=-1)
    return (logit_scale * mode @ prototypes.T).to(given)


def squared_bandwidth(views: Views, neighbours: float) -> Float[Tensor, "batch views"]:
    """Half the mean squared distance to the nearest share `neighbours` of the other views, floor(share * (views - 1)) or one."""
    if views.shape[1] == 1:
        return views.new_full(views.shape[:2], SMALLEST_BANDWIDTH)
    distance = torch.cdist(views, views, compute_mode="donot_use_mm_for_euclid_dist").square()
    count = kept_views(views.shape[1] - 1, neighbours)
    nearest = distance.sort(-1).values[..., 1 : count + 1]
    return (nearest.mean(-1) / 2).clamp_min(SMALLEST_BANDWIDTH)


def kernel_density(views: Views, mode: Float[Tensor, "batch dim"], bandwidth: Float[Tensor, "batch views"]) -> Float[Tensor, "batch views"]:
    """The Gaussian kernel of each view, with its own squared bandwidth, at the mode."""
    return torch.exp(-(views - mode[:, None]).square().sum(-1) / (2 * bandwidth))
