"""The checkpoint of a fit behind a checksum, as Lightning reads and writes it."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from multicrop.files import DamagedFileError, naming, read_sealed, set_aside, write_sealed


class SealedCheckpoint(TorchCheckpointIO):
    """Reads and writes one checkpoint file, whose checksum also covers the file's name, which holds the identity of the fit.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.payload = b""

    def found(self) -> bool:
        """Whether there is a checkpoint to resume from, which is then read; a damaged one is named in a warning and set aside."""
        try:
            self.payload = read_sealed(self.path, self.path.name)
        except FileNotFoundError:
            return False
        except DamagedFileError:
            set_aside(self.path, "is damaged, the fit starts anew", "paths.cache")
            return False
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the checkpoint, whole or not at all."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with naming(self.path, "paths.cache"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(self.path, content.getvalue(), self.path.name)

    def load_checkpoint(self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint that `found` has read."""
        return torch.load(io.BytesIO(self.payload), map_location=map_location or "cpu", weights_only=True)
