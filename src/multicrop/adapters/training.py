"""Gradient descent by Lightning's fit, for adapters that train some tensors; a killed descent can go on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from jaxtyping import Float, Int
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import lr_scheduler

KEEP_EVERY = 20.0  # seconds between two checkpoints: shorter fits leave no file


@dataclass(frozen=True)
class Descent:
    """The knobs of a trained adapter's descent; `plan_epochs` is for how many epochs a transport plan is held."""

    learning_rate: float | int
    epochs: int
    batch_size: int
    seed: int
    plan_epochs: int = 1

    @property
    def loop(self) -> dict[str, int]:
        """What `train` wants of it."""
        return {"epochs": self.epochs, "batch_size": self.batch_size, "seed": self.seed, "plan_epochs": self.plan_epochs}


@runtime_checkable
class Batches(Protocol):
    """The batches of indices of one epoch; `epoch` says of which, so that no epoch depends on those before."""

    epoch: int

    def __iter__(self) -> Iterator[Int[Tensor, " batch"]]:
        """The batches."""

    def __len__(self) -> int:
        """How many they are."""


def train(
    loss: Callable[[Int[Tensor, " batch"]], Float[Tensor, ""]],
    optimizer: torch.optim.Optimizer,
    *,
    n: int,
    epochs: int,
    batch_size: int,
    seed: int,
    warm_up: float | None = None,
    per_epoch: int | None = None,
    plan_epochs: int = 1,
    **keeping: object,
) -> list[float]:
    """Minimise `loss` of a batch of the indices below n, shuffled each epoch, with cosine decay to 0; returns each epoch's mean loss.

    Up to `batch_size` examples an epoch is one full batch; `per_epoch` takes only so many examples an epoch, drawn afresh. `warm_up` is the
    constant learning rate of the first epoch, where the decay begins with the second. `plan_epochs` and `keeping` are for `descend`. Raises
    ValueError when epochs, batch_size or n is not positive, or when the loss has no gradient.
    """
    if min(epochs, batch_size, n) < 1:
        raise ValueError(f"training wants epochs, batch_size and examples, got {epochs}, {batch_size} and {n}")
    batches = Shuffled(n, per_epoch or n, batch_size, seed)
    schedule = _schedule(optimizer, epochs, len(batches), warm_up)
    return descend(loss, schedule, batches, epochs=epochs, keep_epochs=plan_epochs, **keeping)


def descend(
    loss: Callable[[Int[Tensor, " batch"]], Float[Tensor, ""]],
    schedule: lr_scheduler.LRScheduler,
    batches: Batches,
    *,
    epochs: int,
    keep_epochs: int = 1,
    checkpoint: Path | None = None,
    leave: bool = False,
    progress: bool = False,
    accelerator: str = "cpu",
) -> list[float]:
    """Follow the gradient with the optimiser of `schedule`, which moves at every step; returns each epoch's mean loss.

    A fit that lasts keeps its state in `checkpoint` at the end of an epoch, of those that `keep_epochs` divides, and goes on from there
    when it is called again; the file is gone when it is done, but for `leave`, where the caller removes it. `progress` shows a bar.
    Raises ValueError when the loss has no gradient.
    """
    module = _Descending(loss, schedule, batches)
    keeper = [_Keeper(checkpoint, keep_epochs)] if checkpoint else []
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=[*keeper, *([_Bar()] if progress else [])],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    whole = checkpoint if checkpoint and checkpoint.exists() else None
    trainer.fit(module, batches, ckpt_path=whole, weights_only=True)
    if checkpoint and not leave:
        checkpoint.unlink(missing_ok=True)
    return module.losses


class Shuffled:
    """The batches of an epoch, in an order keyed by seed and epoch; an epoch's order does not depend on those before."""

    def __init__(self, n: int, per_epoch: int, batch_size: int, seed: int) -> None:
        self.n, self.per_epoch, self.batch_size, self.seed, self.epoch = n, per_epoch, batch_size, seed, 0

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        yield from torch.randperm(self.n, generator=generator)[: self.per_epoch].split(self.batch_size)

    def __len__(self) -> int:
        return -(-self.per_epoch // self.batch_size)


class _Descending(L.LightningModule):
    """The tensors of an optimiser, and the loss of a batch of indices."""

    def __init__(self, loss: Callable, schedule: lr_scheduler.LRScheduler, batches: Batches) -> None:
        super().__init__()
        self.loss, self.schedule, self.batches = loss, schedule, batches
        self.tensors = nn.ParameterList(p for group in schedule.optimizer.param_groups for p in group["params"])
        self.losses: list[float] = []
        self.rows = 0  # of this epoch, so far

    def configure_optimizers(self) -> dict:
        """The optimiser as it came, its learning rate changed at every step."""
        return {"optimizer": self.schedule.optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """A new mean loss."""
        self.losses.append(0.0)
        self.rows = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of the batch; raises ValueError when there is nothing to follow."""
        value = self.loss(batch)
        if not value.requires_grad:
            raise ValueError(
                "an adapter that is trained needs logits with a gradient, and this aggregator's have none (aggregator=vote counts votes). "
                "Use another aggregator, such as dnd or mean_feature, or an adapter that leaves views and prompts as they are (tip_adapter)"
            )
        self.rows += len(batch)
        self.losses[-1] += (value.item() - self.losses[-1]) * len(batch) / self.rows
        return value

    def on_train_epoch_end(self) -> None:
        """The next epoch has an order of its own."""
        self.batches.epoch = self.current_epoch + 1

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """The losses so far."""
        checkpoint["losses"] = self.losses

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on behind the epochs that are done."""
        self.losses = list(checkpoint["losses"])
        self.batches.epoch = len(self.losses)


class _Keeper(L.Callback):
    """Writes the state at the end of an epoch, whole or not at all, when the last time was KEEP_EVERY seconds ago."""

    def __init__(self, path: Path, epochs: int) -> None:
        self.path, self.epochs, self.last = path, epochs, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the state, where no transport plan is held over to the next epoch."""
        if time.monotonic() - self.last < KEEP_EVERY or (trainer.current_epoch + 1) % self.epochs:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        trainer.save_checkpoint(partial)
        partial.replace(self.path)
        self.last = time.monotonic()


class _Bar(L.Callback):
    """One bar over all epochs, which leaves no trace."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show it, as far as the fit is."""
        self.bar = Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
        self.task = self.bar.add_task("Fitting", total=trainer.max_epochs, completed=trainer.current_epoch)
        self.bar.start()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One epoch more."""
        self.bar.update(self.task, completed=trainer.current_epoch + 1)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take it away, after an error too."""
        if hasattr(self, "bar"):
            self.bar.stop()


def _schedule(optimizer: torch.optim.Optimizer, epochs: int, steps: int, warm_up: float | None) -> lr_scheduler.LRScheduler:
    """Cosine decay over all steps, or over those after a constant first epoch."""
    if warm_up is None:
        return lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    constant = lr_scheduler.ConstantLR(optimizer, warm_up / optimizer.param_groups[0]["lr"], total_iters=steps)
    decay = lr_scheduler.CosineAnnealingLR(optimizer, max(1, (epochs - 1) * steps))
    return lr_scheduler.SequentialLR(optimizer, [constant, decay], milestones=[steps])
