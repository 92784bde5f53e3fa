"""The index of finished runs: from a run's identity to its record, so that a sweep continues where it stopped."""

import json
import os
from pathlib import Path

from multicrop.files import naming, write_text
from multicrop.record import KNOB, Record, RecordError, read_record, write_pointer
from multicrop.show import terminal

FOLDER = ".by_config"


def find(outputs: Path, key: str) -> Record | None:
    """The record of a finished run below ``outputs``; None where there is none, or its folder holds a damaged record or another run's."""
    try:
        record = read_record(Path(outputs, json.loads(_entry(outputs, key).read_text(encoding="utf-8"))["record"]).resolve())
        return record if record.identity is not None and record.identity.key == key else None
    except (OSError, ValueError, KeyError, TypeError, RecordError):
        return None


def any_below(outputs: Path) -> bool:
    """Whether there is a finished run below ``outputs`` at all."""
    return any((outputs / FOLDER).glob("*.json"))


def skip(folder: Path, record: Record) -> float:
    """The accuracy of a finished run of the same identity, to whose record the job's folder points."""
    if record.folder != folder.resolve():
        write_pointer(folder, record.folder)
    terminal.show_skipped(record.folder)
    return record.accuracy


def enter(outputs: Path, key: str, record: Path) -> None:
    """Enter a finished run, relative to ``outputs``, so that the folder can be moved."""
    entry = _entry(outputs, key)
    with naming(entry, KNOB):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_text(entry, json.dumps({"record": os.path.relpath(record, outputs)}))


def _entry(outputs: Path, key: str) -> Path:
    return outputs / FOLDER / f"{key}.json"
