"""Optimal transport between the crops of an image and the descriptions of a class, batched over images and classes."""

import warnings

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

    `tolerance` bounds the L1 error of the crop marginal, as a share of the mass. Warns when it is not reached, with the knob.
    """
    kernel = -cost / epsilon
    log_a, log_b = a.log(), b.log()
    u, v = torch.zeros_like(a), torch.zeros_like(b)
    error = torch.inf
    for iteration in range(max_iterations):
        u = _finite(log_a - torch.logsumexp(kernel + v[..., None, :], -1), log_a)
        v = _finite(log_b - torch.logsumexp(kernel + u[..., :, None], -2), log_b)
        if iteration % 5 == 4 or iteration + 1 == max_iterations:
            rows = torch.logsumexp(kernel + u[..., :, None] + v[..., None, :], -1).exp()
            error = (rows - a).abs().sum(-1).max().item()
            if error < tolerance:
                break
    if error >= tolerance:
        warnings.warn(
            f"Sinkhorn stopped at a marginal error of {error:.1e} after {max_iterations} iterations (tolerance {tolerance:.0e}): "
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


def solve(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
    *,
    solver: str,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
) -> Plan:
    """The plan of the named solver; raises ValueError for a name that is none."""
    if solver == "sinkhorn":
        return sinkhorn(cost, a, b, epsilon=epsilon, tolerance=tolerance, max_iterations=max_iterations)
    if solver == "exact":
        return exact(cost, a, b)
    raise ValueError(f"aggregator.solver is exact or sinkhorn, got {solver!r}")
