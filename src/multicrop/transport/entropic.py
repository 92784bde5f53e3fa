"""Balanced entropic transport: Sinkhorn iterations on scalings, absorbed into dual potentials when they leave the range of float32."""

import warnings
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multicrop.transport.relaxed import Plan

CHECK_EVERY = 5  # iterations between two evaluations of the error
ABSORB_ABOVE = 1e12  # larger scalings (or smaller than the reciprocal) are absorbed, well within the 1e38 of float32


@dataclass
class Scalings:
    """The state of problems during the iterations: the plan is exp((f + g - cost) / epsilon), row k times r[k], column m times s[m]."""

    cost: Float[Tensor, "problems views prompts"]
    a: Float[Tensor, "problems views"]
    b: Float[Tensor, "problems prompts"]
    f: Float[Tensor, "problems views"]
    g: Float[Tensor, "problems prompts"]
    kernel: Float[Tensor, "problems views prompts"]
    r: Float[Tensor, "problems views"]
    s: Float[Tensor, "problems prompts"]

    def __getitem__(self, rows: Tensor) -> "Scalings":
        """Select problems."""
        return Scalings(*(getattr(self, field.name)[rows] for field in fields(self)))

    def iterate(self, times: int) -> None:
        """Fit the row marginal and then the column marginal, `times` times."""
        for _ in range(times):
            self.r = _divide(self.a, torch.bmm(self.kernel, self.s[..., None]).squeeze(-1))
            self.s = _divide(self.b, torch.bmm(self.r[:, None], self.kernel).squeeze(1))

    def errors(self) -> Float[Tensor, " problems"]:
        """Return the L1 error of the row (view) marginal; the column marginal holds exactly."""
        return (self.r * torch.bmm(self.kernel, self.s[..., None]).squeeze(-1) - self.a).abs().sum(-1)

    def plan(self) -> Float[Tensor, "problems views prompts"]:
        """Return the current plan."""
        return (self.kernel * self.r[..., None]).mul_(self.s[:, None])

    def absorb(self, epsilon: float) -> None:
        """Move the scalings into the potentials and recompute the kernel."""
        self.f, self.g = _shifted(self.f, self.r, epsilon), _shifted(self.g, self.s, epsilon)
        self.kernel = _kernel(self.cost, self.f, self.g, epsilon)
        self.r, self.s = (self.a > 0).to(self.r.dtype), (self.b > 0).to(self.s.dtype)

    def log_step(self, epsilon: float) -> None:
        """Do one iteration in the log domain, for scalings outside the range of float32."""
        f = epsilon * (self.a.log() - torch.logsumexp((self.g[:, None] - self.cost) / epsilon, -1))
        self.f = torch.where(self.a > 0, f, 0)
        g = epsilon * (self.b.log() - torch.logsumexp((self.f[..., None] - self.cost) / epsilon, -2))
        self.g = torch.where(self.b > 0, g, 0)
        self.r, self.s = (self.a > 0).to(self.r.dtype), (self.b > 0).to(self.s.dtype)
        self.kernel = _kernel(self.cost, self.f, self.g, epsilon)

    def out_of_range(self) -> Bool[Tensor, " problems"]:
        """Where a scaling of positive mass is beyond ABSORB_ABOVE or below its reciprocal, infinite or no number."""
        inside = [(x < ABSORB_ABOVE) & (x > 1 / ABSORB_ABOVE) | (mass == 0) for x, mass in ((self.r, self.a), (self.s, self.b))]
        return ~(inside[0].all(-1) & inside[1].all(-1))


def sinkhorn(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
    *,
    epsilon: float,
    tolerance: float,
    max_iterations: int,
) -> Plan:
    """Solve the entropic transport problem by Sinkhorn iterations.

    The scalings multiply exp(-cost / epsilon) relative to dual potentials, which absorb them when they leave the range of float32, so a
    small epsilon neither over- nor underflows. Each problem stops at its own iteration, so its plan does not depend on the other problems.
    Warns if a problem does not reach the tolerance. Source: Cuturi, NeurIPS 2013; absorption: Schmitzer, SISC 2019.

    Args:
        cost: Cost of each pair, shape (batch, classes, views, prompts).
        a: Mass of each view, shape (batch, classes, views).
        b: Mass of each prompt, shape (batch, classes, prompts); 0 for padding.
        epsilon: Entropic regularisation, in units of cost.
        tolerance: Largest L1 error of the view marginal, as a share of the mass.
        max_iterations: Maximum number of iterations.

    Returns:
        Transport plans, shape (batch, classes, views, prompts); pairs without mass are 0.
    """
    plans = torch.zeros_like(cost).flatten(0, 1)
    state, rows = start(cost.flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1), epsilon), torch.arange(len(plans), device=cost.device)
    errors = torch.full(rows.shape, torch.inf, dtype=cost.dtype, device=cost.device)
    for iteration in range(0, max_iterations, CHECK_EVERY):
        advance(state, min(CHECK_EVERY, max_iterations - iteration), epsilon)
        running = errors[rows] >= tolerance
        errors[rows] = torch.where(running, state.errors(), errors[rows])
        stopped = running & ((errors[rows] < tolerance) | (iteration + CHECK_EVERY >= max_iterations))
        if stopped.any():
            plans[rows[stopped]] = state[stopped].plan()
        running &= ~stopped
        if not running.any():
            break
        if 4 * running.sum() < 3 * len(running):
            state, rows = state[running], rows[running]
    worst = errors.max().item()
    if worst >= tolerance:
        warnings.warn(
            f"Sinkhorn stopped at a marginal error of {worst:.1e} after {max_iterations} iterations (tolerance {tolerance:.0e}): "
            "raise aggregator.max_iterations or aggregator.epsilon, or choose aggregator.solver=exact",
            stacklevel=2,
        )
    return plans.view_as(cost)


def start(cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> Scalings:
    """Initial potentials, for which the largest kernel entry of every row and column with mass is 1; entries without mass are 0."""
    empty = (a == 0)[..., :, None] | (b == 0)[..., None, :]
    if empty.any():
        cost = cost.masked_fill(empty, torch.inf)
    f = _finite(cost.amin(2))
    g = _finite((cost - f[..., None]).amin(1))
    return Scalings(cost, a, b, f, g, _kernel(cost, f, g, epsilon), (a > 0).to(a.dtype), (b > 0).to(b.dtype))


def advance(state: Scalings, times: int, epsilon: float) -> None:
    """Do `times` iterations; scalings out of range are absorbed, or their iterations are repeated in the log domain."""
    r, s = state.r, state.s
    state.iterate(times)
    outside = state.out_of_range()
    if not outside.any():
        return
    lost = ~(_sound(state.r, state.a) & _sound(state.s, state.b))
    if not lost.any():
        return state.absorb(epsilon)
    state.r[lost], state.s[lost] = r[lost], s[lost]
    state.absorb(epsilon)
    redo = state[lost]
    for _ in range(times):
        redo.log_step(epsilon)
    for field in fields(state):
        getattr(state, field.name)[lost] = getattr(redo, field.name)
    return None


def _divide(mass: Tensor, by: Tensor) -> Tensor:
    """Quotients, 0 for zero mass."""
    return torch.where(mass > 0, mass / by, 0)


def _kernel(cost: Tensor, f: Tensor, g: Tensor, epsilon: float) -> Tensor:
    return (f[..., None] - cost).add_(g[:, None]).div_(epsilon).exp_()


def _shifted(potential: Tensor, scaling: Tensor, epsilon: float) -> Tensor:
    return torch.where(scaling > 0, potential + epsilon * scaling.log(), potential)


def _finite(potential: Tensor) -> Tensor:
    return torch.where(potential.isfinite(), potential, 0)


def _sound(scaling: Tensor, mass: Tensor) -> Tensor:
    return ((scaling > 0) & (scaling < torch.inf) | (mass == 0)).all(-1)
