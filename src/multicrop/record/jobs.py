"""The folder of a job that has no record of its own: record.json leads to an earlier one, failed.json holds the error of a failed run."""

import json
import os
from pathlib import Path

import yaml

from multicrop.files import naming, read_facts, write_facts
from multicrop.record.predictions import RecordError, damaged

METRICS, POINTER, FAILURE = "metrics.json", "record.json", "failed.json"
KNOB = "paths.output"  # names the folder of all records


def failure(folder: Path) -> str | None:
    """The error of a failed run; None if the folder holds none."""
    return str(content(folder / FAILURE).get("error", "unknown")) if (folder / FAILURE).is_file() else None


def resolved(folder: Path) -> Path:
    """The folder that a pointer names, or the folder itself; raises RecordError where the pointer is damaged or leads to no record."""
    if not (folder / POINTER).is_file():
        return folder
    pointer = read_facts(folder / POINTER)
    if pointer is None or pointer.get("job") != folder.resolve().name:
        raise damaged(folder / POINTER, "its content does not match its checksum")
    target = (folder / str(pointer["record"])).resolve()
    if not (target / METRICS).is_file():
        raise RecordError(f"{folder}: {POINTER} leads to {target}, which holds no {METRICS}; run the experiment again")
    return target


def write_pointer(folder: Path, record: Path) -> None:
    """Write the path of the existing record into the folder of a skipped job, with a checksum that covers the job's name."""
    with naming(folder / POINTER, KNOB):
        write_facts(folder / POINTER, {"record": os.path.relpath(record, folder), "job": folder.resolve().name})


def content(path: Path) -> dict:
    """The content of a JSON or YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if path.suffix == ".yaml" else json.loads(text)  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise damaged(path, error) from error
    if not isinstance(value, dict):
        raise damaged(path, f"expected names with values, got {type(value).__name__}")
    return value
