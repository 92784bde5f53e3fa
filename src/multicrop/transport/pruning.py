"""Exact transport for the classes that can be among the best five, and upper bounds for the others."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multicrop.transport.bounds import dual_scores, relaxed_scores
from multicrop.transport.simplex import optimal_plans

TOP = 5  # certified places
SLACK = 1e-5  # cosine: larger than the rounding of a bound or a score in float32
SHORTLIST = 32  # classes per image whose bounds are tightened before any is solved
SOLVED_AT_ONCE = 2  # classes per image that are solved between two updates of its threshold


class Certified(NamedTuple):
    """Scores of all classes.

    Attributes:
        scores: Exact if `solved`; otherwise upper bounds that lie below the certified places. Shape (batch, classes).
        solved: Whether the score is exact, shape (batch, classes).
    """

    scores: Float[Tensor, "batch classes"]
    solved: Bool[Tensor, "batch classes"]


class Problems(NamedTuple):
    """All transport problems between some images and all classes.

    Attributes:
        similarity: Cosine similarities, shape (batch, views, classes, prompts).
        a: Mass of each view, shape (batch, views).
        b: Mass of each prompt, shape (batch, classes, prompts).
        offset: What is added to a score before classes are compared, shape (batch, classes).
    """

    similarity: Float[Tensor, "batch views classes prompts"]
    a: Float[Tensor, "batch views"]
    b: Float[Tensor, "batch classes prompts"]
    offset: Float[Tensor, "batch classes"]

    def pick(self, image: Int[Tensor, " problems"], label: Int[Tensor, " problems"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return similarities and marginals of the pairs of an image and a class."""
        return self.similarity[image, :, label], self.a[image], self.b[image, label]


def certified_scores(problems: Problems, mask: Bool[Tensor, "classes prompts"]) -> Certified:
    """Compute the exact scores max <P, S> of enough classes to certify, for each image, the five best of `offset + score` in order.

    Proof. Let U(c) bound the score of class c from above (`relaxed_scores`, or `dual_scores` where that was computed and is smaller) and t
    be the fifth best offset + score among the solved classes. Classes are solved in the order of offset + U until every unsolved class u
    has offset(u) + U(u) + SLACK < t. Then offset(u) + score(u) < t, so at least five solved classes are ahead of u, and so are the five
    best of all; their scores are computed as without pruning, hence their order too. What u gets, U(u), also lies below t, so it changes
    none of the five places. SLACK is larger than the rounding of either side, so the argument holds in float32. With fewer than six classes
    all are solved.

    Args:
        problems: The transport problems.
        mask: Whether a prompt is no padding, shape (classes, prompts).

    Returns:
        Exact scores of the solved classes and bounds of the others.
    """
    bound = relaxed_scores(*problems[:3], mask)
    state, every = Certified(bound, torch.zeros_like(bound, dtype=torch.bool)), torch.ones_like(bound, dtype=torch.bool)
    _tighten(problems, state, *_best(every, problems.offset + state.scores, SHORTLIST))
    _solve(problems, state, *_best(every, problems.offset + state.scores, TOP))
    _tighten(problems, state, *open_classes(problems, state).nonzero(as_tuple=True))
    while (candidates := open_classes(problems, state)).any():
        _solve(problems, state, *_best(candidates, problems.offset + state.scores, SOLVED_AT_ONCE))
    return state


def open_classes(problems: Problems, state: Certified) -> Bool[Tensor, "batch classes"]:
    """Return the unsolved classes that may still be among the best five, shape (batch, classes)."""
    reach = problems.offset + state.scores
    solved = reach.masked_fill(~state.solved, -torch.inf)
    threshold = solved.topk(min(TOP, solved.shape[1]), 1).values[:, -1:]
    return ~state.solved & (reach + SLACK >= threshold)


def _best(candidates: Bool[Tensor, "batch classes"], reach: Float[Tensor, "batch classes"], count: int) -> tuple[Tensor, Tensor]:
    """Images and classes of the `count` candidates per image with the highest reach."""
    furthest = reach.masked_fill(~candidates, -torch.inf).topk(min(count, reach.shape[1]), 1)
    image, place = furthest.values.isfinite().nonzero(as_tuple=True)
    return image, furthest.indices[image, place]


def _tighten(problems: Problems, state: Certified, image: Tensor, label: Tensor) -> None:
    state.scores[image, label] = torch.minimum(state.scores[image, label], dual_scores(*problems.pick(image, label)))


def _solve(problems: Problems, state: Certified, image: Tensor, label: Tensor) -> None:
    similarity, a, b = problems.pick(image, label)
    plan = optimal_plans(1 - similarity, a, b)
    state.scores[image, label] = transported(plan, similarity)
    state.solved[image, label] = True


def transported(plan: Float[Tensor, "*batch views prompts"], similarity: Float[Tensor, "*batch views prompts"]) -> Float[Tensor, "*batch"]:
    """Return the mean similarity per unit of transported mass, shape (...)."""
    return (plan * similarity).sum((-2, -1)) / plan.sum((-2, -1))
