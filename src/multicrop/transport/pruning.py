"""Exact transport for the classes that can be among the best ones, and bounds for the others."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multicrop.transport.bounds import dual_scores, relaxed_scores
from multicrop.transport.simplex import optimal_plans

TOP = 5  # places that are certified
SLACK = 1e-5  # cosine: more than float32 can add to a bound or take from a score
SHORTLIST = 32  # classes an image whose bounds are tightened before the first are solved
AT_ONCE = 2  # classes an image that are solved between two looks at its threshold


class Certified(NamedTuple):
    """Scores of all classes, exact where `solved`, and elsewhere bounds from above that lie below the certified places."""

    scores: Float[Tensor, "batch classes"]
    solved: Bool[Tensor, "batch classes"]


class Problems(NamedTuple):
    """All transport problems between some images and all classes; `offset` is added to a score before classes are compared."""

    similarity: Float[Tensor, "batch views classes prompts"]
    a: Float[Tensor, "batch views"]
    b: Float[Tensor, "batch classes prompts"]
    offset: Float[Tensor, "batch classes"]

    def pick(self, image: Int[Tensor, " problems"], label: Int[Tensor, " problems"]) -> tuple[Tensor, Tensor, Tensor]:
        """Similarities and marginals of some pairs of an image and a class."""
        return self.similarity[image, :, label], self.a[image], self.b[image, label]


def certified_scores(problems: Problems, mask: Bool[Tensor, "classes prompts"]) -> Certified:
    """The exact scores max <P, S> of as many classes as it takes to know the five best of `offset + score`, in order, of each image.

    Proof. Let U(c) bound the score of class c from above (`relaxed_scores`, or `dual_scores` where that was computed and is smaller) and t
    be the fifth best offset + score among the solved classes. Classes are solved in the order of offset + U until every unsolved class u
    has offset(u) + U(u) + SLACK < t. Then offset(u) + score(u) < t, so at least five solved classes are ahead of u, and so are the five
    best of all; their scores are computed as without pruning, hence their order too. What u gets, U(u), also lies below t, so it disturbs
    none of the five places. SLACK is wider than the rounding of either side, so the argument survives float32. With fewer than six classes
    all are solved.
    """
    bound = relaxed_scores(*problems[:3], mask)
    state, every = Certified(bound, torch.zeros_like(bound, dtype=torch.bool)), torch.ones_like(bound, dtype=torch.bool)
    _tighten(problems, state, *_best(every, problems.offset + state.scores, SHORTLIST))
    _solve(problems, state, *_best(every, problems.offset + state.scores, TOP))
    _tighten(problems, state, *open_classes(problems, state).nonzero(as_tuple=True))
    while (candidates := open_classes(problems, state)).any():
        _solve(problems, state, *_best(candidates, problems.offset + state.scores, AT_ONCE))
    return state


def open_classes(problems: Problems, state: Certified) -> Bool[Tensor, "batch classes"]:
    """The unsolved classes that may still belong to the best ones."""
    reach = problems.offset + state.scores
    solved = reach.masked_fill(~state.solved, -torch.inf)
    threshold = solved.topk(min(TOP, solved.shape[1]), 1).values[:, -1:]
    return ~state.solved & (reach + SLACK >= threshold)


def _best(candidates: Bool[Tensor, "batch classes"], reach: Float[Tensor, "batch classes"], count: int) -> tuple[Tensor, Tensor]:
    """Images and classes of the `count` candidates an image that reach furthest."""
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
    """The mean similarity under the plan: of one unit of transported mass."""
    return (plan * similarity).sum((-2, -1)) / plan.sum((-2, -1))
