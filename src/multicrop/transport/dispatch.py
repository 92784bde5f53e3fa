"""The plan of a solver chosen by name."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multicrop.transport.entropic import sinkhorn
from multicrop.transport.relaxed import Plan, partial, unbalanced
from multicrop.transport.simplex import exact


def uniform_marginal(mask: Bool[Tensor, "*batch set"]) -> Float[Tensor, "*batch set"]:
    """Equal mass on every unmasked member."""
    return mask.float() / mask.sum(-1, keepdim=True)


def solve(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
    *,
    solver: str,
    epsilon: float,
    tolerance: float = 1e-3,
    max_iterations: int = 500,
    marginal_penalty: float = 0.1,
    mass: float = 0.8,
) -> Plan:
    """The plan of the named solver; raises ValueError for a name that is none and for a knob out of its range.

    `exact` reads no other knob; `marginal_penalty` is for `unbalanced`, `mass` for `partial`. `unbalanced` measures cost from the cheapest
    pair of each problem: that only scales its plan, and keeps it from vanishing.
    """
    if solver == "exact":
        return exact(cost, a, b)
    for name, value in (("epsilon", epsilon), ("marginal_penalty", marginal_penalty), ("mass", mass), ("max_iterations", max_iterations)):
        if not value > 0 or (name == "mass" and value > 1):
            raise ValueError(f"aggregator.{name} is above 0{' and at most 1' if name == 'mass' else ''}, got {value}")
    knobs = {"epsilon": epsilon, "tolerance": tolerance, "max_iterations": max_iterations}
    if solver == "sinkhorn":
        return sinkhorn(cost, a, b, **knobs)
    if solver == "partial":
        return partial(cost, a, b, mass=mass, **knobs)
    if solver == "unbalanced":
        empty = (a == 0)[..., :, None] | (b == 0)[..., None, :]
        cheapest = cost.masked_fill(empty, torch.inf).amin((2, 3), keepdim=True)
        return unbalanced(cost - cheapest, a, b, marginal_penalty=marginal_penalty, **knobs)
    raise ValueError(f"aggregator.solver is exact, sinkhorn, unbalanced or partial, got {solver!r}")
