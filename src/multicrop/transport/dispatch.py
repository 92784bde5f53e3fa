"""Transport by the solver of a given name."""

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multicrop.config.ranges import Count, OneOf, Positive, Share, Weight
from multicrop.transport.entropic import sinkhorn
from multicrop.transport.relaxed import Plan, partial, unbalanced
from multicrop.transport.simplex import exact

SOLVERS = ("exact", "sinkhorn", "unbalanced", "partial")


def uniform_marginal(mask: Bool[Tensor, "*batch set"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*batch set"]:
    """Return equal masses of the unmasked members, summing to 1, in the shape of `mask`."""
    return mask.to(dtype) / mask.sum(-1, keepdim=True)


def solve(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
    *,
    solver: Annotated[str, OneOf(SOLVERS)] = "sinkhorn",
    epsilon: Positive = 0.05,
    tolerance: Weight = 1e-3,
    max_iterations: Count = 500,
    marginal_penalty: Positive = 0.1,
    mass: Share = 0.8,
) -> Plan:
    """Solve the transport problems of all pairs of an image and a class; half precision is solved in float32.

    Args:
        cost: Cost of each pair, shape (batch, classes, views, prompts).
        a: Mass of each view, shape (batch, classes, views).
        b: Mass of each prompt, shape (batch, classes, prompts); 0 for padding.
        solver: ``"exact"`` (uses no other argument), ``"sinkhorn"``, ``"unbalanced"`` or ``"partial"``. ``"unbalanced"`` measures costs
            from the cheapest pair of each problem, which only scales its plan and keeps the plan from vanishing.
        epsilon: Entropic regularisation, above 0, in units of cost.
        tolerance: Error at which a problem stops.
        max_iterations: Maximum number of iterations.
        marginal_penalty: Penalty of missed marginals for ``"unbalanced"``, above 0.
        mass: Transported mass for ``"partial"``, above 0 and at most 1.

    Returns:
        Transport plans, shape (batch, classes, views, prompts).

    Raises:
        ValueError: For another solver, or a value outside its range.
    """
    wide = torch.promote_types(cost.dtype, torch.float32)
    if wide != cost.dtype:
        knobs = {"epsilon": epsilon, "tolerance": tolerance, "max_iterations": max_iterations, "marginal_penalty": marginal_penalty}
        masses = [side.to(wide) / side.to(wide).sum(-1, keepdim=True) for side in (a, b)]  # rounded masses do not sum to 1
        return solve(cost.to(wide), *masses, solver=solver, mass=mass, **knobs).to(cost.dtype)
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
