"""Training of an adapter's tensors: descent hyper-parameters, batches of an epoch, learning-rate schedule."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import lr_scheduler

from multicrop.adapters.descent import descend


@dataclass(frozen=True)
class Descent:
    """Hyper-parameters of the training of an adapter.

    Attributes:
        learning_rate: Initial learning rate.
        epochs: Number of epochs.
        batch_size: Examples per step.
        seed: Seed of the order of the examples.
        plan_epochs: Number of epochs for which a transport plan is held (see `HeldPlans`).
    """

    learning_rate: float | int
    epochs: int
    batch_size: int
    seed: int
    plan_epochs: int = 1


def train(
    loss: Callable[[Int[Tensor, " batch"]], Float[Tensor, ""]],
    optimizer: torch.optim.Optimizer,
    *,
    n: int,
    descent: Descent,
    warm_up: float | None = None,
    per_epoch: int | None = None,
    after_epoch: Callable[[], None] | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> list[float]:
    """Minimise the loss of shuffled batches with cosine decay of the learning rate to 0.

    Args:
        loss: Mean loss of a batch of example indices below `n`.
        optimizer: Optimiser of the tensors to train, with its learning rate set.
        n: Number of examples.
        descent: Epochs, batch size and seed. A batch size of `n` or more gives one full batch per epoch.
        warm_up: Constant learning rate of the first epoch, after which the decay begins; None decays from the first step.
        per_epoch: Number of examples per epoch, drawn anew each epoch; None takes all.
        after_epoch: Called without gradients at the end of each epoch.
        checkpoint: File in which a long fit keeps its state (see `descend`).
        progress: Whether to show a progress bar.

    Returns:
        Mean loss of each epoch.

    Raises:
        ValueError: If epochs, batch size or `n` is not positive, or if the loss has no gradient.
    """
    if min(descent.epochs, descent.batch_size, n) < 1:
        raise ValueError(
            f"training needs adapter.epochs, adapter.batch_size and a number of examples of 1 or more, "
            f"got {descent.epochs}, {descent.batch_size} and {n}"
        )
    batches = Shuffled(n, per_epoch or n, descent.batch_size, descent.seed)
    schedule = cosine_schedule(optimizer, descent.epochs, len(batches), warm_up)
    keep_epochs = descent.plan_epochs  # a checkpoint holds no transport plans, so it is written when the next epoch solves new ones
    return descend(
        loss,
        schedule,
        batches,
        epochs=descent.epochs,
        keep_epochs=keep_epochs,
        after_epoch=after_epoch,
        checkpoint=checkpoint,
        progress=progress,
    )


class Shuffled:
    """The batches of an epoch in an order keyed by seed and epoch.

    Args:
        n: Number of examples.
        per_epoch: Number of examples that an epoch draws of them.
        batch_size: Examples per batch.
        seed: Seed of all orders.
    """

    def __init__(self, n: int, per_epoch: int, batch_size: int, seed: int) -> None:
        self.n, self.per_epoch, self.batch_size, self.seed, self.epoch = n, per_epoch, batch_size, seed, 0

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        yield from torch.randperm(self.n, generator=generator)[: self.per_epoch].split(self.batch_size)

    def __len__(self) -> int:
        return -(-self.per_epoch // self.batch_size)


def cosine_schedule(optimizer: torch.optim.Optimizer, epochs: int, steps: int, warm_up: float | None) -> lr_scheduler.LRScheduler:
    """Cosine decay over all `epochs` x `steps` steps, or over those after a first epoch at the constant rate `warm_up`."""
    if warm_up is None:
        return lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    constant = lr_scheduler.ConstantLR(optimizer, warm_up / optimizer.param_groups[0]["lr"], total_iters=steps)
    decay = lr_scheduler.CosineAnnealingLR(optimizer, max(1, (epochs - 1) * steps))
    return lr_scheduler.SequentialLR(optimizer, [constant, decay], milestones=[steps])
