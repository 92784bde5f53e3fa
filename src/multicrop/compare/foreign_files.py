"""Reads the files that `multicrop export` writes: CSV, Parquet and Every Eval Ever."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.compare.export import IMAGES, MEASURED, RUNS
from multicrop.compare.run import SEEDS

SAMPLES = "_samples.jsonl"
WHOLE = {"limit", "images", "classes", "rank", "label_number", "prediction_number", "views", "rescued", "lost", "clusters", *SEEDS}
NUMBERS = (WHOLE | {"seconds", *MEASURED}) - {"test"}
Line = dict[str, Any]


class Lines(NamedTuple):
    """The lines of an export.

    Attributes:
        runs: One per run and row.
        images: One per run, row and image.
    """

    runs: list[Line]
    images: list[Line]


def read_lines(place: Path) -> Lines | None:
    """Read an export.

    Args:
        place: One of its files, or a folder that holds it.

    Returns:
        Its lines; None where there is no export at or below the place.

    Raises:
        ValueError: If a file cannot be read, or lacks a column.
    """
    folder = place if place.is_dir() else place.parent
    try:
        for ending, read in (("csv", _csv), ("parquet", _parquet)):
            tables = [] if place.suffix == ".json" else sorted(folder.rglob(f"{RUNS}.{ending}"))
            if tables:
                return _joined(folder, tables, ending, read)
        samples = sorted(folder.rglob(f"*{SAMPLES}")) if place.is_dir() else [place.with_name(place.stem + SAMPLES)]
        repeated = Counter(path.name for path in samples)
        found = [
            _every_eval_ever(path, within=_below(folder, path) if repeated[path.name] > 1 else "") for path in samples if path.is_file()
        ]
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{place} is no export that can be read ({type(error).__name__}: {error}); export it again") from error
    return Lines([line for one in found for line in one.runs], [line for one in found for line in one.images]) if found else None


def _below(folder: Path, file: Path) -> str:
    """What tells the runs of a file from those of files in other folders: the path of its folder below the common one."""
    path = file.parent.relative_to(folder).as_posix()
    return "" if path == "." else f"{path}/"


def _joined(folder: Path, tables: list[Path], ending: str, read: Callable[[Path], list[Line]]) -> Lines:
    """The lines of several exports; runs are named below the folder of their export where there are several."""
    runs, images = [], []
    for path in tables:
        within = _below(folder, path) if len(tables) > 1 else ""
        for found, lines in ((runs, read(path)), (images, read(path.with_name(f"{IMAGES}.{ending}")))):
            found += [_typed(line) | {"run": within + line["run"]} for line in lines]
    return Lines(runs, images)


def _csv(path: Path) -> list[Line]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: value or None for name, value in line.items()} for line in csv.DictReader(stream)]


def _parquet(path: Path) -> list[Line]:
    return pq.read_table(path).to_pylist()


def _every_eval_ever(samples: Path, within: str) -> Lines:
    """The lines of one run, whose name begins with `within`."""
    stem = samples.name.removesuffix(SAMPLES)
    whole = json.loads(samples.with_name(f"{stem}.json").read_text(encoding="utf-8"))
    name, by = within + stem, whole["source_metadata"]["source_organization_name"]
    runs = [_run_line(result, whole["model_info"]) | {"run": name, "by": by} for result in whole["evaluation_results"]]
    images = [_image_line(json.loads(text)) | {"run": name} for text in samples.read_text(encoding="utf-8").splitlines()]
    return Lines(runs, images)


def _run_line(result: Mapping[str, Any], model: Mapping[str, Any]) -> Line:
    data, generated, score = result["source_data"], result["generation_config"], result["score_details"]
    line = {**data["additional_details"], **generated["additional_details"], **score["details"]}
    line |= {"dataset": data["dataset_name"], "row": _row(result), "model": model["id"], "accuracy": score["score"]}
    return _typed(line | {"command": generated["generation_args"]["execution_command"]})


def _image_line(instance: Mapping[str, Any]) -> Line:
    named = {"label": instance["input"]["reference"][0], "prediction": instance["output"]["raw"][0]}
    return _typed({**instance["metadata"], **named, "image_id": instance["sample_id"], "row": _row(instance)})


def _row(result: Mapping[str, Any]) -> str:
    """The row that a result or an instance belongs to."""
    return result["evaluation_name"].rpartition(", ")[2]


def _typed(line: Mapping[str, Any]) -> Line:
    """A line with its numbers as numbers, and None for what is not known; old exports have no numbers of classes."""
    empty = dict.fromkeys(("label_number", "prediction_number"))
    return empty | {name: _number(name, value) if name in NUMBERS else value for name, value in line.items()}


def _number(name: str, value: Any) -> int | float | None:
    return None if value in (None, "") else int(value) if name in WHOLE else float(value)
