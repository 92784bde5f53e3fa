"""Exact transport by POT's network simplex, one problem after the other, in float64."""

import warnings

import numpy as np
import ot
import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.transport.relaxed import Plan

MAX_PIVOTS = 1_000_000  # 64 crops x 50 descriptions take a few hundred


def exact(
    cost: Float[Tensor, "batch classes views prompts"],
    a: Float[Tensor, "batch classes views"],
    b: Float[Tensor, "batch classes prompts"],
) -> Plan:
    """The optimal plan of every problem. Warns when the simplex gave up."""
    flat = (x.flatten(0, 1) for x in (cost, a, b))
    return optimal_plans(*flat).view_as(cost)


def optimal_plans(
    cost: Float[Tensor, "problems views prompts"], a: Float[Tensor, "problems views"], b: Float[Tensor, "problems prompts"]
) -> Float[Tensor, "problems views prompts"]:
    """The optimal plans, in float32; entries of zero mass stay empty. Raises ValueError for costs or masses that are no numbers."""
    plans = np.zeros(cost.shape, dtype=np.float32)
    costs, rows, columns = (x.detach().cpu().double().numpy() for x in (cost, a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        rows, columns = rows / rows.sum(1, keepdims=True), columns / columns.sum(1, keepdims=True)
    if not all(np.isfinite(x).all() for x in (costs, rows, columns)):  # the simplex would crash on them
        raise ValueError("exact transport got costs or masses that are not finite; check the features: is the checkpoint whole?")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for plan, problem, row, column in zip(plans, costs, rows, columns, strict=True):
            used = column > 0
            if used.all():
                plan[:] = ot.emd(row, column, problem, numItermax=MAX_PIVOTS, check_marginals=False)
            else:
                plan[:, used] = ot.emd(
                    row, column[used], np.ascontiguousarray(problem[:, used]), numItermax=MAX_PIVOTS, check_marginals=False
                )
    if caught:
        warnings.warn(
            f"exact transport was not solved for {len(caught)} of {len(plans)} problems ({caught[0].message}): "
            "choose aggregator.solver=sinkhorn with a small aggregator.epsilon",
            stacklevel=2,
        )
    return torch.from_numpy(plans).to(cost.device)
