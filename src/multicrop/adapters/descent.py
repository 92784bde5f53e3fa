"""Gradient descent by Lightning's fit, which resumes from a checkpoint after an interruption."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from jaxtyping import Float, Int
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import lr_scheduler

from multicrop.adapters.sealed_checkpoint import SealedCheckpoint
from multicrop.features.callbacks import quiet_trainer

CHECKPOINT_SECONDS = 20.0  # between two checkpoints; a shorter fit writes none


@runtime_checkable
class Batches(Protocol):
    """The batches of example indices of the epoch number `epoch`; they do not depend on the epochs before."""

    epoch: int

    def __iter__(self) -> Iterator[Int[Tensor, " batch"]]:
        """Iterate over the batches."""
        ...

    def __len__(self) -> int:
        """Return the number of batches."""
        ...


def descend(
    loss: Callable[[Int[Tensor, " batch"]], Float[Tensor, ""]],
    schedule: lr_scheduler.LRScheduler,
    batches: Batches,
    *,
    epochs: int,
    keep_epochs: int = 1,
    after_epoch: Callable[[], None] | None = None,
    checkpoint: Path | None = None,
    keep_file: bool = False,
    progress: bool = False,
    accelerator: str = "cpu",
) -> list[float]:
    """Minimise the loss with the optimiser of `schedule`, whose learning rate changes at every step.

    Args:
        loss: Mean loss of a batch of example indices.
        schedule: Learning-rate schedule around the optimiser.
        batches: The batches of each epoch.
        epochs: Number of epochs.
        keep_epochs: A checkpoint is written after an epoch whose number this divides.
        after_epoch: Called without gradients at the end of each epoch.
        checkpoint: File of the state of a fit that takes longer than `CHECKPOINT_SECONDS`. If it exists, the fit resumes from
            it; a damaged one is set aside with a warning.
        keep_file: Whether the checkpoint stays after the fit, for the caller to remove; otherwise it is removed.
        progress: Whether to show a progress bar.
        accelerator: Lightning's accelerator, ``"cpu"`` or ``"gpu"``.

    Returns:
        Mean loss of each epoch.

    Raises:
        ValueError: If the loss has no gradient.
    """
    module = DescentModule(loss, schedule, batches, after_epoch)
    sealed = SealedCheckpoint(checkpoint) if checkpoint else None
    checkpoints = [FitCheckpoint(checkpoint, keep_epochs)] if checkpoint else []
    trainer = quiet_trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=epochs,
        callbacks=[*checkpoints, *([FitBar()] if progress else [])],
        plugins=sealed,
        enable_progress_bar=False,
    )
    resume_from = checkpoint if sealed and sealed.found() else None
    trainer.fit(module, WholeEpochs(batches), ckpt_path=resume_from, weights_only=True)
    if checkpoint and not keep_file:
        checkpoint.unlink(missing_ok=True)
    return module.losses


class WholeEpochs:
    """All batches of an epoch as one item, as Lightning's overhead per item is longer than many steps."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[Int[Tensor, " batch"]]]:
        yield list(self.batches)

    def __len__(self) -> int:
        return 1


class DescentModule(L.LightningModule):
    """The tensors of an optimiser, and the loss of a batch of indices."""

    def __init__(
        self,
        loss: Callable[[Int[Tensor, " batch"]], Float[Tensor, ""]],
        schedule: lr_scheduler.LRScheduler,
        batches: Batches,
        after_epoch: Callable[[], None] | None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.loss, self.schedule, self.batches, self.after_epoch = loss, schedule, batches, after_epoch
        self.tensors = nn.ParameterList(p for group in schedule.optimizer.param_groups for p in group["params"])
        self.losses: list[float] = []

    def configure_optimizers(self) -> dict:
        """Return the optimiser and its schedule, whose states a checkpoint holds."""
        return {"optimizer": self.schedule.optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Begin the mean loss of a new epoch."""
        self.losses.append(0.0)

    def training_step(self, batches: list[Tensor], batch_idx: int) -> None:
        """Take a step for each batch of the epoch; the schedule changes the learning rate at every step."""
        rows = 0
        for batch in batches:
            value = self._checked(self.loss(batch))
            self.schedule.optimizer.zero_grad()
            value.backward()
            self.schedule.optimizer.step()
            self.schedule.step()
            rows += len(batch)
            self.losses[-1] += (value.item() - self.losses[-1]) * len(batch) / rows

    def _checked(self, value: Tensor) -> Tensor:
        """The loss; raises ValueError if it has no gradient."""
        if not value.requires_grad:
            raise ValueError(
                "a trained adapter needs logits with a gradient, and this aggregator's logits have none (aggregator=vote counts votes). "
                "Use another aggregator, such as dnd or mean_feature, or an adapter that is not trained (tip_adapter)"
            )
        return value

    def on_train_epoch_end(self) -> None:
        """Set the epoch whose order comes next, and report the end of this one."""
        self.batches.epoch = self.current_epoch + 1
        if self.after_epoch is not None:
            with torch.no_grad():
                self.after_epoch()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Save the losses so far."""
        checkpoint["losses"] = self.losses

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Restore the losses, and continue after their epochs."""
        self.losses = list(checkpoint["losses"])
        self.batches.epoch = len(self.losses)


class FitCheckpoint(L.Callback):
    """Writes the state of the fit at the end of an epoch, at most once in `CHECKPOINT_SECONDS`."""

    def __init__(self, path: Path, epochs: int) -> None:
        self.path, self.epochs, self.last = path, epochs, time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoint if it is due."""
        if time.monotonic() - self.last < CHECKPOINT_SECONDS or (trainer.current_epoch + 1) % self.epochs:
            return
        trainer.save_checkpoint(self.path)
        self.last = time.monotonic()


class FitBar(L.Callback):
    """One progress bar over all epochs, removed at the end."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar at the epoch from which the fit starts."""
        self.bar = Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
        self.task = self.bar.add_task("Fitting", total=trainer.max_epochs, completed=trainer.current_epoch)
        self.bar.start()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Advance the bar by one epoch."""
        self.bar.update(self.task, completed=trainer.current_epoch + 1)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the bar, after an error too."""
        if hasattr(self, "bar"):
            self.bar.stop()
