"""Optimal transport between the crops of an image and the descriptions of a class, batched over images and classes."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import ot
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Plan = Float[Tensor, "batch classes views prompts"]


def uniform_marginal(mask: Bool[Tensor, "*batch set"]) -> Float[Tensor, "*batch set"]:
    """Equal mass on every unmasked member."""
    return mask.float() / mask.sum(-1, keepdim=True)


def sinkhorn(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
    *,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
) -> Plan:
    """The entropic plan by log-domain Sinkhorn iterations (Cuturi, NeurIPS 2013); entries of zero mass stay empty.

    `tolerance` bounds the L1 error of the crop marginal, as a share of the mass; every image stops on its own, so its plan does not
    depend on the images beside it. Warns when the tolerance is not reached, with the knob.
    """
    kernel = -cost / epsilon
    log_a, log_b = a.log(), b.log()
    u, v = torch.zeros_like(a), _finite(torch.zeros_like(b), log_b)
    error = torch.full(cost.shape[:1], torch.inf, device=cost.device)
    for iteration in range(max_iterations):
        active = error >= tolerance
        k, rows, columns = kernel[active], log_a[active], log_b[active]
        row = _finite(rows - torch.logsumexp(k + v[active][..., None, :], -1), rows)
        column = _finite(columns - torch.logsumexp(k + row[..., :, None], -2), columns)
        u[active], v[active] = row, column
        if iteration % 5 == 4 or iteration + 1 == max_iterations:
            mass = torch.logsumexp(k + row[..., :, None] + column[..., None, :], -1).exp()
            error[active] = (mass - a[active]).abs().sum(-1).amax(1)
            if (error < tolerance).all():
                break
    if (worst := error.max().item()) >= tolerance:
        warnings.warn(
            f"Sinkhorn stopped at a marginal error of {worst:.1e} after {max_iterations} iterations (tolerance {tolerance:.0e}): "
            "raise aggregator.max_iterations or aggregator.epsilon, or choose aggregator.solver=exact",
            stacklevel=2,
        )
    return (kernel + u[..., :, None] + v[..., None, :]).exp()


def _finite(potential: Tensor, log_mass: Tensor) -> Tensor:
    return torch.where(log_mass.isinf(), -torch.inf, potential)


def exact(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
) -> Plan:
    """The optimal plan by POT's network simplex, one problem after the other, in float64."""
    plans = np.zeros(cost.shape, dtype=np.float32)
    costs, rows, columns = (x.detach().cpu().double().numpy() for x in (cost, a, b))
    for index in np.ndindex(cost.shape[:2]):
        used = columns[index] > 0
        target = columns[index][used]
        problem = np.ascontiguousarray(costs[index][:, used])
        plans[index][:, used] = ot.emd(rows[index] / rows[index].sum(), target / target.sum(), problem)
    return torch.from_numpy(plans).to(cost.device)


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
    """The plan that may create or destroy mass at marginal_penalty * KL to each marginal (Chizat et al., Math. Comp. 2018).

    Entropy is taken as epsilon * KL(P | a b^T), so that splitting a crop in two changes nothing. Its mass is free.
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
    """The entropic plan of total mass `mass` that stays below both marginals (Benamou et al., SISC 2015): the worst pairs stay home.

    Entropy is taken as epsilon * KL(P | a b^T), as in `unbalanced`.
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
    """Block ascent on the dual: each potential is the balanced one, softened; with `mass`, one more potential fixes the total.

    Stops when the potentials move less than `tolerance` in an iteration, averaged over the masses.
    """
    kernel = -cost / epsilon + a.log()[..., :, None] + b.log()[..., None, :]
    u, v, moved = torch.zeros_like(a), torch.zeros_like(b), torch.inf
    total = _total(kernel, mass)
    for _ in range(max_iterations):
        before = u, v, total
        u = torch.where(a > 0, soften(a.log() - torch.logsumexp(kernel + total + v[..., None, :], -1)), 0)
        v = torch.where(b > 0, soften(b.log() - torch.logsumexp(kernel + total + u[..., :, None], -2)), 0)
        total = _total(kernel + u[..., :, None] + v[..., None, :], mass)
        steps = [(now - then).abs() for now, then in zip((u, v, total), before, strict=True)]
        moved = ((a * steps[0]).sum(-1) + (b * steps[1]).sum(-1) + steps[2][..., 0, 0]).max().item()
        if moved < tolerance:
            break
    if moved >= tolerance:
        warnings.warn(
            f"the {'unbalanced' if mass is None else 'partial'} solver still moves by {moved:.1e} after {max_iterations} iterations "
            f"(tolerance {tolerance:.0e}): raise aggregator.max_iterations or aggregator.epsilon",
            stacklevel=3,
        )
    return (kernel + total + u[..., :, None] + v[..., None, :]).exp()


def _total(log_plan: Plan, mass: float | None) -> Float[Tensor, "batch classes 1 1"]:
    """The potential that gives the plan its mass, or none."""
    log_mass = torch.logsumexp(log_plan, (-2, -1), keepdim=True)
    return torch.zeros_like(log_mass) if mass is None else math.log(mass) - log_mass


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
    for name, value in (("epsilon", epsilon), ("marginal_penalty", marginal_penalty), ("mass", mass)):
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
