"""Exact transport by POT's network simplex, one problem at a time, in float64."""

import warnings

import numpy as np
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
    """Solve the transport problem of every pair of an image and a class exactly.

    Args:
        cost: Cost of each pair, shape (batch, classes, views, prompts).
        a: Mass of each view, shape (batch, classes, views).
        b: Mass of each prompt, shape (batch, classes, prompts); 0 for padding.

    Returns:
        Optimal plans, shape (batch, classes, views, prompts), see `optimal_plans`.
    """
    return optimal_plans(cost.flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1)).view_as(cost)


def optimal_plans(
    cost: Float[Tensor, "problems views prompts"], a: Float[Tensor, "problems views"], b: Float[Tensor, "problems prompts"]
) -> Float[Tensor, "problems views prompts"]:
    """Solve transport problems exactly; warns if the solver stops early.

    Args:
        cost: Cost of each pair, shape (problems, views, prompts).
        a: Mass of each view, shape (problems, views).
        b: Mass of each prompt, shape (problems, prompts); 0 for padding.

    Returns:
        Optimal plans in the precision of the cost, shape (problems, views, prompts); pairs without mass are 0.

    Raises:
        ValueError: If a cost or a mass is not finite.
    """
    import ot  # a second of imports, which only exact transport needs

    plans: np.ndarray = np.zeros(cost.shape, dtype=np.float64 if cost.dtype == torch.float64 else np.float32)
    costs, rows, columns = (x.detach().cpu().double().numpy() for x in (cost, a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        rows, columns = rows / rows.sum(1, keepdims=True), columns / columns.sum(1, keepdims=True)
    if not all(np.isfinite(x).all() for x in (costs, rows, columns)):  # POT would crash on them
        raise ValueError(
            "exact transport needs finite costs and masses, and some are not finite; check the features and the model checkpoint for damage"
        )
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
    return torch.from_numpy(plans).to(cost)
