"""Which runs are finished: an index from what decides a run's numbers to its record, so that a sweep continues where it was."""

import json
import os
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from multicrop.config import PACKAGE
from multicrop.data.base import Dataset
from multicrop.files import content_hash, write_text

NO_PART = ("paths", "logger", "trainer", "rerun", "pictures", "examples")  # they do not decide a run's numbers


def identity(cfg: DictConfig, dataset: Dataset) -> str:
    """A hash of all that decides a run's numbers: configuration, data, and this package's code."""
    decisive = {key: node for key, node in OmegaConf.to_container(cfg, resolve=True).items() if key not in NO_PART}
    return content_hash(json.dumps(decisive), dataset.train.fingerprint, dataset.test.fingerprint, _code())


def find(output: Path, key: str) -> Path | None:
    """The record of a finished run below `output`; None when there is none, or when it is gone or torn."""
    try:
        record = Path(output, json.loads(_entry(output, key).read_text(encoding="utf-8"))["record"]).resolve()
        return record if "rows" in json.loads((record / "metrics.json").read_text(encoding="utf-8")) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark(output: Path, key: str, record: Path) -> None:
    """Enter a finished run, relative to `output`, so that the folder can be moved."""
    entry = _entry(output, key)
    entry.parent.mkdir(parents=True, exist_ok=True)
    write_text(entry, json.dumps({"record": os.path.relpath(record, output)}))


def point(folder: Path, record: Path) -> None:
    """Say in a skipped job's folder where its record is, so that a comparison of the sweep finds it."""
    write_text(folder / "record.json", json.dumps({"record": os.path.relpath(record, folder)}))


def _entry(output: Path, key: str) -> Path:
    return output / ".by_config" / f"{key}.json"


@cache
def _code() -> str:
    return content_hash(*(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))))
