"""Entropic transport that need not move all mass: `unbalanced` penalises missed marginals, `partial` moves a fixed mass."""

import math
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Plan = Float[Tensor, "batch classes views prompts"]


def unbalanced(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
    *,
    epsilon: float,
    marginal_penalty: float,
    tolerance: float,
    max_iterations: int,
) -> Plan:
    """Solve the unbalanced entropic transport problem, with a penalty of marginal_penalty * KL to each marginal.

    The regularisation is epsilon * KL(P | a b^T), so that splitting a crop into two equal ones changes nothing. The total mass is free.
    Warns if a problem does not reach the tolerance. Source: Chizat et al., Math. Comp. 2018.

    Args:
        cost: Cost of each pair, shape (batch, classes, views, prompts).
        a: Mass of each view, shape (batch, classes, views).
        b: Mass of each prompt, shape (batch, classes, prompts); 0 for padding.
        epsilon: Entropic regularisation, in units of cost.
        marginal_penalty: Penalty of missed marginals, in units of cost.
        tolerance: Largest change of the potentials in an iteration, averaged over the masses, at which a problem stops.
        max_iterations: Maximum number of iterations.

    Returns:
        Transport plans, shape (batch, classes, views, prompts).
    """
    share = marginal_penalty / (marginal_penalty + epsilon)
    return _relaxed(cost, a, b, lambda x: share * x, None, epsilon, tolerance, max_iterations)


def partial(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
    *,
    epsilon: float,
    mass: float,
    tolerance: float,
    max_iterations: int,
) -> Plan:
    """Solve the partial entropic transport problem: a total mass of `mass` is moved, within both marginals.

    The regularisation is epsilon * KL(P | a b^T), as in `unbalanced`. Warns if a problem does not reach the tolerance. Source: Benamou et
    al., SISC 2015.

    Args:
        cost: Cost of each pair, shape (batch, classes, views, prompts).
        a: Mass of each view, shape (batch, classes, views).
        b: Mass of each prompt, shape (batch, classes, prompts); 0 for padding.
        epsilon: Entropic regularisation, in units of cost.
        mass: Transported mass, above 0 and at most 1.
        tolerance: Largest change of the potentials in an iteration, averaged over the masses, at which a problem stops.
        max_iterations: Maximum number of iterations.

    Returns:
        Transport plans, shape (batch, classes, views, prompts).
    """
    return _relaxed(cost, a, b, lambda x: x.clamp(max=0), mass, epsilon, tolerance, max_iterations)


def _relaxed(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    soften: Callable[[Tensor], Tensor],
    mass: float | None,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
) -> Plan:
    """Block ascent on the dual: each potential is the balanced one after `soften`; with `mass`, one more potential fixes the total."""
    a, b = a.flatten(0, 1), b.flatten(0, 1)
    log_a, log_b = a.log(), b.log()
    kernel = (-cost / epsilon).flatten(0, 1) + log_a[..., :, None] + log_b[..., None, :]
    u, v, total = torch.zeros_like(a), torch.zeros_like(b), _total(kernel, mass)
    moved = torch.full(kernel.shape[:1], torch.inf, dtype=cost.dtype, device=cost.device)
    for _ in range(max_iterations):
        on = (moved >= tolerance).nonzero().squeeze(1)
        if not len(on):
            break
        k, now = kernel[on], (u[on], v[on], total[on])
        row = soften(log_a[on] - torch.logsumexp(k + now[2] + now[1][..., None, :], -1))
        row = torch.where(a[on] > 0, row, 0)
        column = soften(log_b[on] - torch.logsumexp(k + now[2] + row[..., :, None], -2))
        column = torch.where(b[on] > 0, column, 0)
        fixed = _total(k + row[..., :, None] + column[..., None, :], mass)
        steps = [(new - old).abs() for new, old in zip((row, column, fixed), now, strict=True)]
        moved[on] = (a[on] * steps[0]).sum(-1) + (b[on] * steps[1]).sum(-1) + steps[2][..., 0, 0]
        u[on], v[on], total[on] = row, column, fixed
    if (worst := moved.max().item()) >= tolerance:
        warnings.warn(
            f"the {'unbalanced' if mass is None else 'partial'} solver still changes by {worst:.1e} after {max_iterations} iterations "
            f"(tolerance {tolerance:.0e}): raise aggregator.max_iterations or aggregator.epsilon",
            stacklevel=3,
        )
    return (kernel + total + u[..., :, None] + v[..., None, :]).exp().view_as(cost)


def _total(log_plan: Float[Tensor, "problems views prompts"], mass: float | None) -> Float[Tensor, "problems 1 1"]:
    """The potential that gives the plan the mass `mass`; 0 without one."""
    log_mass = torch.logsumexp(log_plan, (-2, -1), keepdim=True)
    return torch.zeros_like(log_mass) if mass is None else math.log(mass) - log_mass
