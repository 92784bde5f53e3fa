"""Lightning's trainer as this package uses it: quiet, with stops between batches; and the progress bar of encoding."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from multicrop.features.stops import end_batch, enter_loop, leave_loop


class StopBetweenBatches(L.Callback):
    """Stops a trainer at the end of the batch in which a signal comes; its last callback, after those that write results."""

    def _enter(self, *_: Any, **__: Any) -> None:
        enter_loop()

    def _leave(self, *_: Any, **__: Any) -> None:
        leave_loop()

    def _check(self, *_: Any, **__: Any) -> None:
        end_batch()

    on_train_start = on_test_start = on_predict_start = _enter
    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _check
    on_train_end = on_test_end = on_predict_end = on_exception = _leave


class BankProgress(RichProgressBar):
    """The progress bar of encoding, counted in batches."""

    @property
    def predict_description(self) -> str:
        """What the bar says while views are encoded."""
        return "Encoding"


def quiet_trainer(*, callbacks: Sequence[L.Callback] = (), **knobs: Any) -> L.Trainer:
    """A trainer without logger, checkpoints and summary, which a signal stops between two batches; Lightning logs warnings alone."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its import sets INFO
    quiet = {"logger": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(callbacks=[*callbacks, StopBetweenBatches()], **quiet, **knobs)
