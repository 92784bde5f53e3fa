"""What the jobs of a sweep leave in their folders: a pointer to a record that was made before, the reason of a failure, a state."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from multicrop.files import redacted, write_text
from multicrop.record import FAILURE, METRICS, POINTER, RecordError, failure, resolved, stored_accuracy


def write_pointer(folder: Path, record: Path) -> None:
    """Write the path of the existing record into the folder of a skipped job."""
    write_text(folder / POINTER, json.dumps({"record": os.path.relpath(record, folder)}))


def write_failure(folder: Path, error: str, traceback: Sequence[str]) -> None:
    """Write the error of a failed job into its folder, without the values of secret variables."""
    write_text(folder / FAILURE, json.dumps(redacted({"error": error, "traceback": list(traceback)}), indent=1))


def clear_failure(folder: Path) -> None:
    """Remove the error of an earlier run from a folder."""
    (folder / FAILURE).unlink(missing_ok=True)


@dataclass(frozen=True)
class FolderState:
    """State of a job: whether its run is finished, its accuracy, and the error if it failed."""

    done: bool
    accuracy: float | None = None
    failed: str | None = None


def folder_state(folder: Path) -> FolderState:
    """The state of a job's folder, from one small file; a damaged metrics.json counts as finished without an accuracy."""
    try:
        folder, failed = resolved(folder), failure(folder)
        if failed is not None or not (folder / METRICS).is_file():
            return FolderState(False, failed=failed)
        return FolderState(True, stored_accuracy(folder))
    except RecordError:
        return FolderState((folder / METRICS).is_file(), failed="unknown" if (folder / FAILURE).is_file() else None)
