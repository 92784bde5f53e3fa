"""Saves of a task in the middle of its stream, so that a killed run is resumed where it was."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from multicrop.files import atomic, make_folder
from multicrop.runs.task import BankTask

log = logging.getLogger(__name__)


class StreamSaves(L.Callback):
    """Saves a task every so many images, at the end of a batch.

    The folder holds part-<n>.safetensors (labels, indices and logits scored since the save before) and state.safetensors (the buffers of
    the task's state, the number of parts and the sizes of the batches), which is written last.

    Args:
        folder: Where the saves are written.
        every: Images between saves; None: nothing is saved.

    Raises:
        ValueError: If ``every`` is less than one image.
    """

    def __init__(self, folder: Path, *, every: int | None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"task.save_every is 1 image or more, or null for never, got {every}")
        self.folder, self.every = folder, every
        self.parts, self.saved, self.resumed = 0, 0, 0  # saved: batches; resumed: images that an earlier process scored

    def resume(self, task: BankTask) -> list[int]:
        """Give the task what an earlier process saved; the indices of the images that are done, in their order."""
        if self.every is None or task.state is None or (found := self._read()) is None:
            return []
        rows, state, facts = found
        task.state.load_state_dict(state)
        split = {name: values.split(facts["batches"]) for name, values in rows.items()}
        for batch in range(len(facts["batches"])):  # batch by batch, as they were counted: sums round accordingly
            task.collect({name: values[batch] for name, values in split.items()})
        task.seconds.update(facts["seconds"])
        self.parts, self.saved, self.resumed = facts["parts"], len(facts["batches"]), sum(facts["batches"])
        log.warning(f"resuming after {self.resumed} images of the stream, which an earlier run of this configuration scored")
        return rows["index"].tolist()

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Save when enough images have passed since the last time, and more are to come."""
        if self.every is None or not isinstance(pl_module, BankTask):
            return
        more = batch_idx + 1 < trainer.num_test_batches[0]
        if more and sum(map(len, pl_module.collected["label"][self.saved :])) >= self.every:
            self.save(pl_module)

    def save(self, task: BankTask) -> None:
        """Write the rows since the last save, then the state."""
        make_folder(self.folder, "paths.output")
        _write(self._part(self.parts), {name: torch.cat(parts[self.saved :]) for name, parts in task.collected.items()}, {})
        self.parts, self.saved = self.parts + 1, len(task.collected["label"])
        facts = {"parts": self.parts, "batches": [len(labels) for labels in task.collected["label"]], "seconds": task.seconds}
        _write(self.folder / "state.safetensors", task.state.state_dict() if task.state else {}, facts)

    def remove(self) -> None:
        """Remove the saves of a run that is recorded."""
        if self.every is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.safetensors"

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict] | None:
        """Rows, state and facts; None where nothing was saved, or not all of it can be read."""
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
            parts = [load_file(self._part(index)) for index in range(facts["parts"])]
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            log.warning(f"the saved stream in {self.folder} cannot be read ({error}); the run starts from its first image")
            return None
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, state, facts


def _write(path: Path, tensors: Mapping[str, Tensor], facts: dict) -> None:
    with atomic(path) as partial:
        plain = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        save_file(plain, partial, metadata={"facts": json.dumps(facts)})
