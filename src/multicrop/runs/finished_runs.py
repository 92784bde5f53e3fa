"""The index of finished runs: from what decides a run's numbers to its record, so that a sweep continues where it stopped."""

import json
import os
from functools import cache
from pathlib import Path

from multicrop.config import PACKAGE
from multicrop.data.base import Dataset
from multicrop.files import content_hash, write_text
from multicrop.record import NOT_DECISIVE, Record, RecordError, read_record
from multicrop.runs.settings import Settings


def run_key(settings: Settings, dataset: Dataset) -> str:
    """A hash of all that decides a run's numbers: configuration, data, and this package's code."""
    decisive = {name: values for name, values in settings.config.items() if name not in NOT_DECISIVE}
    return content_hash(json.dumps(decisive), dataset.train.fingerprint, dataset.test.fingerprint, _code())


def find(outputs: Path, key: str) -> Record | None:
    """The record of a finished run below ``outputs``; None when there is none that can be read."""
    try:
        return read_record(Path(outputs, json.loads(_entry(outputs, key).read_text(encoding="utf-8"))["record"]).resolve())
    except (OSError, ValueError, KeyError, TypeError, RecordError):
        return None


def enter(outputs: Path, key: str, record: Path) -> None:
    """Enter a finished run, relative to ``outputs``, so that the folder can be moved."""
    entry = _entry(outputs, key)
    entry.parent.mkdir(parents=True, exist_ok=True)
    write_text(entry, json.dumps({"record": os.path.relpath(record, outputs)}))


def _entry(outputs: Path, key: str) -> Path:
    return outputs / ".by_config" / f"{key}.json"


@cache
def _code() -> str:
    return content_hash(*(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))))
