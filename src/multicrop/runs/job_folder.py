"""What the jobs of a sweep leave in their folders: the reason of a failure, a state."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from multicrop.files import MANIFEST, naming, redacted, write_text
from multicrop.record import FAILURE, KNOB, METRICS, RecordError, failure, resolved, stored_accuracy


def write_failure(folder: Path, error: str, traceback: Sequence[str]) -> None:
    """Write the error of a failed job into its folder, without the values of secret variables."""
    with naming(folder / FAILURE, KNOB):
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
    """The state of a job's folder, from two small files.

    A record without a manifest was killed while it was written and is not finished; a damaged metrics.json of one that has a manifest
    counts as finished without an accuracy.
    """
    try:
        folder, failed = resolved(folder), failure(folder)
        if failed is not None or not (folder / METRICS).is_file():
            return FolderState(False, failed=failed)
        return FolderState(True, stored_accuracy(folder))
    except RecordError:
        whole = (folder / METRICS).is_file() and (folder / MANIFEST).is_file()
        return FolderState(whole, failed="unknown" if (folder / FAILURE).is_file() else None)


def overrides_in(path: Path) -> list[str]:
    """The overrides of a job; none where the file cannot be read, for instance while Hydra writes it."""
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [str(word) for word in words] if isinstance(words, list) else []
