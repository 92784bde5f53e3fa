"""Gradient descent over cached features, for adapters of one or two small tensors.

A plain loop: fitting takes a second and there is nothing to checkpoint, distribute or log by step, where Lightning's fit would want a
second module, data module and trainer inside the task's own.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def train(
    loss: Callable[[Int[Tensor, " batch"]], Float[Tensor, ""]],
    optimizer: torch.optim.Optimizer,
    *,
    n: int,
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[float]:
    """Minimise `loss` of a batch of the indices below n, shuffled each epoch, with cosine decay to 0; returns each epoch's mean loss.

    Up to `batch_size` examples an epoch is one full batch. Raises ValueError when epochs, batch_size or n is not positive.
    """
    if min(epochs, batch_size, n) < 1:
        raise ValueError(f"training wants epochs, batch_size and examples, got {epochs}, {batch_size} and {n}")
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-n // batch_size))
    return [_epoch(loss, optimizer, schedule, torch.randperm(n, generator=generator).split(batch_size)) / n for _ in range(epochs)]


def _epoch(loss: Callable, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, batches: tuple) -> float:
    """One pass; the sum of the losses of all examples."""
    total = 0.0
    for batch in batches:
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
        schedule.step()
        total += value.item() * len(batch)
    return total
