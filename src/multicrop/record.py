"""The record of a run: what its folder holds, how it is written, and how it is read back.

A record holds config.yaml (resolved configuration), data.json (data set, class names), predictions.parquet (one row per image),
environment.json (where and how the run was made), examples.json (small pictures), what the task adds (splits.json, stream.csv), and
metrics.json, which is written last. A job of a sweep leaves record.json instead where its run was finished before, or failed.json.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from multicrop.files import as_yaml, atomic, redacted, write_text

FORMAT = 2  # of the folder; 1 had no number, and `milliseconds_an_image` for `ms_per_image`
ROWS = ("global", "crops_mean", "aggregated", "final")  # the baselines, the aggregator, and what the task predicts with
SEEDS = ("seed", "crop_seed", "task.order_seed")  # runs that differ only in these are one method
NOT_DECISIVE = ("paths", "logger", "trainer", "rerun", "pictures", "examples")  # parts that do not decide a run's numbers
CONFIG, DATA, PREDICTIONS, ENVIRONMENT, METRICS = "config.yaml", "data.json", "predictions.parquet", "environment.json", "metrics.json"
EXAMPLES, SPLITS, STREAM, PICTURE = "examples.json", "splits.json", "stream.csv", "explanations.png"
POINTER, FAILURE = "record.json", "failed.json"
FILES = (CONFIG, DATA, PREDICTIONS, EXAMPLES, SPLITS, STREAM, ENVIRONMENT, METRICS, PICTURE)


class RecordError(ValueError):
    """A folder that holds no readable record, with the reason."""


@dataclass(frozen=True)
class Predictions:
    """What a run predicted, one entry per image.

    Args:
        image_id: Ids of the images.
        label: Class index of each image, shape (images,).
        rows: Predicted class index of each image, shape (images,), for each of ``ROWS``.
        domain: Domain of each image; empty strings where there are none.
        top_classes: The best classes of the final row, best first, shape (images, k).
        top_logits: Their logits, shape (images, k).
    """

    image_id: Sequence[str]
    label: np.ndarray
    rows: Mapping[str, np.ndarray]
    domain: Sequence[str]
    top_classes: Sequence[Sequence[int]] = ()
    top_logits: Sequence[Sequence[float]] = ()

    def __len__(self) -> int:
        return len(self.label)

    def correct(self, row: str = "final") -> np.ndarray:
        """Whether each image is classified correctly by a row, shape (images,)."""
        return self.rows[row] == self.label

    def accuracy(self, row: str = "final") -> float:
        """Top-1 accuracy of a row, from 0 to 1."""
        return float(self.correct(row).mean())

    def sorted(self) -> "Predictions":
        """The same in the order of the image ids, so that runs can be paired; without the top classes."""
        order = np.argsort(np.asarray(self.image_id), kind="stable")
        rows = {row: values[order] for row, values in self.rows.items()}
        places: list[int] = order.tolist()
        ids, domains = [self.image_id[i] for i in places], [self.domain[i] for i in places]
        return Predictions(ids, self.label[order], rows, domains)

    def write(self, path: Path) -> None:
        """Write predictions.parquet."""
        columns = {"image_id": list(self.image_id), "domain": list(self.domain), "label": self.label}
        columns |= {f"{row}_prediction": self.rows[row] for row in ROWS}
        columns |= {"top_classes": list(self.top_classes), "top_logits": list(self.top_logits)} if len(self.top_classes) else {}
        with atomic(path) as partial:
            pq.write_table(pa.table(columns), partial)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read predictions.parquet; raises RecordError when it is damaged or another file."""
        try:
            table = pq.read_table(path)
            rows = {row: np.asarray(table[f"{row}_prediction"].to_pylist()) for row in ROWS}
            top = [table[name].to_pylist() if name in table.column_names else () for name in ("top_classes", "top_logits")]
            return cls(table["image_id"].to_pylist(), np.asarray(table["label"].to_pylist()), rows, table["domain"].to_pylist(), *top)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RecordError(f"{path.parent}: {path.name} is torn or foreign ({error}); run the experiment again") from error


def write_record(
    folder: Path,
    *,
    config: dict,
    metrics: Mapping,
    predictions: Predictions,
    environment: Mapping,
    data: Mapping,
    examples: Sequence[Mapping] = (),
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the record of a run; metrics.json comes last, so a record that has it is whole. Values of secret variables are left out.

    Args:
        folder: The run's folder.
        config: The resolved configuration.
        metrics: Numbers of the run.
        predictions: Label and prediction of each image.
        environment: Where and how the run was made.
        data: What was scored: ``dataset``, ``split``, ``fingerprint``, ``class_names``.
        examples: Pictures of single images, as ``show.examples`` makes them.
        files: Text files that the task adds, by name.
    """
    write_text(folder / CONFIG, redacted(as_yaml(config)))
    write_text(folder / DATA, json.dumps(data, indent=1))
    if examples:
        write_text(folder / EXAMPLES, json.dumps(examples))
    for name, text in (files or {}).items():
        write_text(folder / name, text)
    predictions.write(folder / PREDICTIONS)
    write_text(folder / ENVIRONMENT, redacted(json.dumps(environment, indent=1)))
    write_text(folder / METRICS, json.dumps({"format": FORMAT, **metrics}, indent=1))


def write_pointer(folder: Path, record: Path) -> None:
    """Say in the folder of a skipped job where its record is."""
    write_text(folder / POINTER, json.dumps({"record": os.path.relpath(record, folder)}))


def write_failure(folder: Path, error: str, traceback: Sequence[str]) -> None:
    """Say in the folder of a failed job why it failed; values of secret variables are left out."""
    write_text(folder / FAILURE, redacted(json.dumps({"error": error, "traceback": list(traceback)}, indent=1)))


def clear_failure(folder: Path) -> None:
    """Remove what an earlier failed run left in a folder."""
    (folder / FAILURE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Record:
    """One finished run as its folder tells it; predictions are read on first use."""

    folder: Path
    config: dict
    metrics: dict
    environment: dict
    data: dict = field(default_factory=dict)

    @cached_property
    def choices(self) -> dict[str, str]:
        """The option chosen in each config group; where the record has none, the last part of the group's ``_target_``."""
        groups = {k: v["_target_"].rsplit(".", 1)[-1] for k, v in self.config.items() if isinstance(v, dict) and "_target_" in v}
        return {**groups, "task": self.config["task"]["name"], **self.environment.get("choices", {})}

    @cached_property
    def knobs(self) -> dict[str, object]:
        """All leaves of the configuration that decide the run's numbers, by dotted name, without seeds that follow the run's own."""
        leaves = _leaves({k: v for k, v in self.config.items() if k not in NOT_DECISIVE})
        return {name: value for name, value in leaves if not (name.endswith(".seed") and value == self.config.get("seed"))}

    @cached_property
    def seeds(self) -> tuple:
        """The values of ``SEEDS``, which tell the runs of one method apart."""
        return tuple(self.knobs.get(name) for name in SEEDS)

    @cached_property
    def method(self) -> str:
        """A key that all runs of one method share, whatever the data."""
        return json.dumps({k: v for k, v in self.knobs.items() if k not in SEEDS}, sort_keys=True, default=str)

    @cached_property
    def stream(self) -> Predictions:
        """The predictions in the order in which the images were scored."""
        return Predictions.read(self.folder / PREDICTIONS)

    @cached_property
    def predictions(self) -> Predictions:
        """The predictions in the order of the image ids."""
        return self.stream.sorted()

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; ``class 0``, ``class 1``, ... where the record has none."""
        shown = self.predictions
        count = int(max(shown.label.max(), *(values.max() for values in shown.rows.values()))) + 1
        return self.data.get("class_names") or [f"class {c}" for c in range(count)]

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.data.get("dataset") or self.choices.get("dataset", "unknown")

    @property
    def domains(self) -> list[str]:
        """The domains of the images, sorted; empty when there are none."""
        return sorted(set(self.predictions.domain) - {""})

    def same_images(self, other: "Record") -> bool:
        """Whether both were scored on the same images with the same labels, so that they can be paired."""
        known = [x.data.get("fingerprint") for x in (self, other)]
        one, two = self.predictions, other.predictions
        alike = None in known or known[0] == known[1]
        return alike and one.image_id == two.image_id and np.array_equal(one.label, two.label)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy of the final row, from 0 to 1."""
        return self.metrics["rows"]["final"]["accuracy"]

    def examples(self) -> list[dict]:
        """The pictures that the run kept: rescued, lost and wrong images; empty when it kept none."""
        path = self.folder / EXAMPLES
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _leaves(node: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_record(folder: Path) -> Record:
    """Read the record in a folder, or the one that its pointer names.

    Raises:
        RecordError: If the run failed, has not finished, or a file is missing, damaged or not of this format.
    """
    if (folder / POINTER).is_file():
        folder = (folder / str(_json(folder / POINTER).get("record", "."))).resolve()
    if not (folder / METRICS).is_file() and (folder / FAILURE).is_file():
        raise RecordError(f"{folder}: the run failed ({failure(folder)})")
    if not (folder / METRICS).is_file():
        raise RecordError(f"{folder}: no {METRICS}, which a run writes last; the run was killed or has not finished")
    metrics = _json(folder / METRICS)
    rows = metrics.get("rows")
    if not isinstance(rows, dict) or not all(isinstance(rows.get(r), dict) and "accuracy" in rows[r] for r in ROWS):
        raise RecordError(f"{folder}: {METRICS} is foreign: it lacks the rows {', '.join(ROWS)} that a record of multicrop has")
    if metrics.get("format", 1) > FORMAT:
        raise RecordError(f"{folder}: the record has format {metrics['format']}, this version reads up to {FORMAT}; update multicrop")
    missing = [name for name in (CONFIG, ENVIRONMENT, PREDICTIONS) if not (folder / name).is_file()]
    if missing:
        raise RecordError(f"{folder}: {', '.join(missing)} is missing from the record; run the experiment again")
    data = _json(folder / DATA) if (folder / DATA).is_file() else {}
    return Record(folder, _config(folder / CONFIG), metrics, _json(folder / ENVIRONMENT), data)


@dataclass(frozen=True)
class FolderState:
    """Whether the run in a folder is done, its accuracy, and why it failed if it did."""

    done: bool
    accuracy: float | None = None
    failed: str | None = None


def folder_state(folder: Path) -> FolderState:
    """The state of a job's folder, at the cost of one small file; a damaged file counts as one without numbers."""
    try:
        if (reason := failure(folder)) is not None:
            return FolderState(False, failed=reason)
        if (folder / POINTER).is_file():
            folder = folder / str(_json(folder / POINTER).get("record", "."))
        if not (folder / METRICS).is_file():
            return FolderState(False)
        return FolderState(True, _json(folder / METRICS).get("rows", {}).get("final", {}).get("accuracy"))
    except RecordError:
        return FolderState((folder / METRICS).is_file(), failed="unknown" if (folder / FAILURE).is_file() else None)


def failure(folder: Path) -> str | None:
    """Why the run in a folder failed; None where it did not."""
    return str(_json(folder / FAILURE).get("error", "unknown")) if (folder / FAILURE).is_file() else None


def _config(path: Path) -> dict:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordError(f"{path.parent}: {path.name} is torn ({str(error).splitlines()[0]}); run the experiment again") from error
    if not isinstance(config, dict) or "name" not in (config.get("task") or {}):
        raise RecordError(f"{path.parent}: {path.name} is foreign: it names no task")
    return config


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path.parent}: {path.name} is torn ({error}); run the experiment again") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path.parent}: {path.name} is foreign: a JSON object was expected, got a {type(value).__name__}")
    return value
