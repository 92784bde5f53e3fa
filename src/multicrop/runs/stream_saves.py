"""Saves of a task in the middle of its stream, so that a killed run is resumed where it was."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from multicrop.features import FeatureBank
from multicrop.files import DamagedFileError, content_hash, make_folder, naming, read_sealed, set_aside, write_sealed
from multicrop.record import KNOB
from multicrop.runs.settings import Settings
from multicrop.runs.task import BankTask

log = logging.getLogger(__name__)
STATE = "state.sealed"


class StreamSaves:
    """Saves a task every so many images, at the end of a batch.

    The folder holds part-<n>.sealed (labels, indices and logits scored since the save before) and state.sealed (the buffers of the task's
    state, the hashes of the parts and the sizes of the batches), which is written last. Each is a safetensors file behind a checksum that
    also covers the folder's name and the file's.

    Args:
        folder: Where the saves are written; its name holds the identity of the run.
        every: Images between saves; None: nothing is saved.

    Raises:
        ValueError: If ``every`` is less than one image.
    """

    def __init__(self, folder: Path, *, every: int | None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"task.save_every is 1 image or more, or null for never, got {every}")
        self.folder, self.every = folder, every
        self.parts: list[str] = []  # a hash of each part
        self.saved, self.resumed = 0, 0  # batches; images that an earlier process scored

    def resume(self, task: BankTask) -> list[int]:
        """Give the task what an earlier process saved; the indices of the images that are done, in their order."""
        if self.every is None or task.state is None or (found := self._read()) is None:
            return []
        rows, state, facts = found
        task.state.load_state_dict(state)
        split = {name: values.split(facts["batches"]) for name, values in rows.items()}
        for batch in range(len(facts["batches"])):  # batch by batch, as `saved` counts them
            task.collect({name: values[batch] for name, values in split.items()})
        task.seconds.update(facts["seconds"])
        self.parts, self.saved, self.resumed = list(facts["parts"]), len(facts["batches"]), sum(facts["batches"])
        log.warning(f"resuming after {self.resumed} images of the stream, which an earlier run of this configuration scored")
        return rows["index"].tolist()

    def after_batch(self, task: BankTask) -> None:
        """Save after a batch that is not the last, when enough images have passed since the last time."""
        if self.every is not None and sum(map(len, task.collected["label"][self.saved :])) >= self.every:
            self.save(task)

    def save(self, task: BankTask) -> None:
        """Write the rows since the last save, then the state."""
        make_folder(self.folder, KNOB)
        rows = {name: torch.cat(parts[self.saved :]) for name, parts in task.collected.items()}
        self.parts = [*self.parts, self._write(_part(len(self.parts)), rows)]
        self.saved = len(task.collected["label"])
        facts = {"parts": self.parts, "batches": [len(labels) for labels in task.collected["label"]], "seconds": task.seconds}
        state = {f"state.{name}": value for name, value in (task.state.state_dict() if task.state else {}).items()}
        self._write(STATE, {"facts": _as_tensor(facts), **state})

    def remove(self) -> None:
        """Remove the saves of a run that is recorded."""
        if self.every is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Write a file; returns a hash of it."""
        payload = save({key: value.detach().clone().contiguous() for key, value in tensors.items()})
        with naming(self.folder / name, KNOB):
            try:
                write_sealed(self.folder / name, payload, self._meaning(name))
            except FileNotFoundError:  # another process of the same run has recorded it and removed the saves of both
                make_folder(self.folder, KNOB)
                write_sealed(self.folder / name, payload, self._meaning(name))
        return xxh3_128_hexdigest(payload)

    def _meaning(self, name: str) -> str:
        return f"{self.folder.name} {name}"

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict] | None:
        """Rows, state and facts; None where nothing was saved, or a file is missing or damaged, which is then set aside."""
        if not (self.folder / STATE).is_file():
            return None
        name = STATE
        try:
            state = load(read_sealed(self.folder / name, self._meaning(name)))
            facts = json.loads(state.pop("facts").numpy().tobytes())
            parts = []
            for index, expected in enumerate(facts["parts"]):
                payload = read_sealed(self.folder / (name := _part(index)), self._meaning(name))
                if xxh3_128_hexdigest(payload) != expected:
                    raise DamagedFileError(f"{self.folder / name} is not the part that {STATE} was saved with")
                parts.append(load(payload))
        except (OSError, DamagedFileError) as error:
            set_aside(self.folder / STATE, f"cannot be resumed ({error}), the run starts from its first image", "paths.output")
            return None
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return rows, {name.removeprefix("state."): value for name, value in state.items()}, facts


def saves_of(settings: Settings, task: BankTask, bank: FeatureBank, key: str) -> StreamSaves:
    """The saves of a run; those of another identity, batch size or place of cutting are never found."""
    name = content_hash(key, settings.compute.batch_size, settings.compute.cut)
    return StreamSaves(settings.outputs / ".streams" / name, every=task.save_every if bank.reorderable else None)


def _part(index: int) -> str:
    return f"part-{index:05d}.sealed"


def _as_tensor(facts: dict) -> Tensor:
    """JSON in a tensor of bytes, as safetensors' own metadata cannot be read from memory."""
    return torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
