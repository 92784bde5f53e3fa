"""Finding and reading the records of runs, with a clear word on each folder that holds none, a torn one or a foreign one."""

import glob
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROWS = ("global", "crops_mean", "aggregated", "final")
SEEDS = ("seed", "crop_seed", "task.order_seed")  # runs that differ only in these are one method
NO_PART = ("paths", "logger", "trainer", "rerun", "pictures", "examples")  # they do not decide a run's numbers


class RecordError(ValueError):
    """A folder that is no readable record, with the reason."""


@dataclass(frozen=True)
class Record:
    """One finished run as its folder tells it; predictions are read on first use, in the order of the sorted image ids."""

    folder: Path
    config: dict
    metrics: dict
    facts: dict
    data: dict

    @cached_property
    def choices(self) -> dict[str, str]:
        """The option chosen in each config group; of an older record the last part of the group's `_target_`."""
        groups = {k: v["_target_"].rsplit(".", 1)[-1] for k, v in self.config.items() if isinstance(v, dict) and "_target_" in v}
        return {**groups, "task": self.config["task"]["name"], **self.facts.get("choices", {})}

    @cached_property
    def knobs(self) -> dict[str, object]:
        """All leaves of the configuration that decide the run's numbers, by dotted name, without seeds that follow the run's own."""
        leaves = _leaves({k: v for k, v in self.config.items() if k not in NO_PART})
        return {name: value for name, value in leaves if not (name.endswith(".seed") and value == self.config.get("seed"))}

    @cached_property
    def seeds(self) -> tuple:
        """What tells the runs of one method apart."""
        return tuple(self.knobs.get(name) for name in SEEDS)

    @cached_property
    def method(self) -> str:
        """A key that all runs of one method share, on whatever data."""
        return json.dumps({k: v for k, v in self.knobs.items() if k not in SEEDS}, sort_keys=True, default=str)

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """The columns of predictions.parquet, sorted by image id."""
        try:
            table = pq.read_table(self.folder / "predictions.parquet")
            columns = {n: np.asarray(table[n].to_pylist()) for n in ("image_id", "domain", "label", *(f"{row}_prediction" for row in ROWS))}
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RecordError(f"{self.folder}: predictions.parquet is torn or foreign ({error}); run the experiment again") from error
        order = np.argsort(columns["image_id"], kind="stable")
        return {name: column[order] for name, column in columns.items()}

    def predictions(self, row: str = "final") -> np.ndarray:
        """The predicted class of each image."""
        return self.table[f"{row}_prediction"]

    def correct(self, row: str = "final") -> np.ndarray:
        """Whether each image is classified right."""
        return self.predictions(row) == self.table["label"]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; of a record without them `class 0`, `class 1`, ..."""
        count = int(max(self.table["label"].max(), *(self.predictions(row).max() for row in ROWS))) + 1
        return self.data.get("class_names") or [f"class {c}" for c in range(count)]

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.data.get("dataset") or self.choices.get("dataset", "unknown")

    @property
    def domains(self) -> list[str]:
        """The domains of the images, sorted; empty when there are none."""
        return sorted(set(self.table["domain"].tolist()) - {""})

    def same_images(self, other: "Record") -> bool:
        """Whether the two were scored on the same images with the same labels, so that they are paired."""
        known = [x.data.get("fingerprint") for x in (self, other)]
        alike = None in known or known[0] == known[1]
        return alike and all(np.array_equal(self.table[name], other.table[name]) for name in ("image_id", "label"))

    def examples(self) -> list[dict]:
        """The pictures that the run kept: rescued, lost and wrong images; empty when it kept none."""
        path = self.folder / "examples.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def read(folder: Path) -> Record:
    """The record in a folder; raises RecordError that says what is wrong with it."""
    if (pointer := folder / "record.json").is_file():  # a sweep's job that found its run already done
        folder = (folder / _json(pointer).get("record", ".")).resolve()
    if not (folder / "metrics.json").is_file() and (folder / "failed.json").is_file():
        raise RecordError(f"{folder}: the run failed ({_json(folder / 'failed.json').get('error', 'unknown')})")
    if not (folder / "metrics.json").is_file():
        raise RecordError(f"{folder}: no metrics.json, which a run writes last; the run was killed or is still at work")
    metrics = _json(folder / "metrics.json")
    rows = metrics.get("rows")
    if not isinstance(rows, dict) or not all(isinstance(rows.get(r), dict) and "accuracy" in rows[r] for r in ROWS):
        raise RecordError(f"{folder}: metrics.json is foreign: it lacks the rows {', '.join(ROWS)} that a record of multicrop has")
    missing = [name for name in ("config.yaml", "environment.json", "predictions.parquet") if not (folder / name).is_file()]
    if missing:
        raise RecordError(f"{folder}: {', '.join(missing)} is missing from the record; run the experiment again")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecordError(f"{folder}: config.yaml is torn ({str(error).splitlines()[0]}); run the experiment again") from error
    if not isinstance(config, dict) or "name" not in (config.get("task") or {}):
        raise RecordError(f"{folder}: config.yaml is foreign: it names no task")
    data = _json(folder / "data.json") if (folder / "data.json").is_file() else {}
    return Record(folder, config, metrics, _json(folder / "environment.json"), data)


def collect(places: Sequence[str | Path]) -> tuple[list[Record], list[str]]:
    """All records in some folders or globs, each once, and a line on each folder that could not be used.

    Raises ValueError when a place does not exist or there is no record at all.
    """
    records, problems = {}, []
    for folder in (f for place in places for f in _folders(str(place))):
        try:
            record = read(folder)
            record.table  # noqa: B018 - reads it: a torn file is found here
            records.setdefault(record.folder.resolve(), record)
        except RecordError as error:
            problems.append(str(error))
    if not records:
        raise ValueError("\n".join([f"no record could be read in {', '.join(map(str, places))}", *problems]))
    return list(records.values()), list(dict.fromkeys(problems))


def _folders(place: str) -> list[Path]:
    """The folders at or below a place that hold, or should hold, a record."""
    names = sorted(glob.glob(place, recursive=True)) if glob.has_magic(place) else [place]  # noqa: PTH207 - absolute patterns too
    matched = [Path(name) for name in names]
    if not matched or not all(path.exists() for path in matched):
        raise ValueError(f"{place} does not exist; pass folders of records, globs of them, or the folder of a sweep")
    found: list[Path] = []
    for path in matched:
        top = path.parent if path.name == "metrics.json" else path
        inside = [p for name in ("metrics.json", "record.json", "metrics.json.partial", "failed.json") for p in top.rglob(name)]
        inside += [p for p in top.rglob("environment.json") if (p.parent / "config.yaml").is_file()]
        found += dict.fromkeys(sorted(p.parent for p in inside if "wandb" not in p.relative_to(top).parts))
    if not found:
        raise ValueError(f"{place} holds no record: a record is a folder with metrics.json, as python run.py writes it")
    return found


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path.parent}: {path.name} is torn ({error}); run the experiment again") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path.parent}: {path.name} is foreign: a JSON object was expected, got a {type(value).__name__}")
    return value


def _leaves(node: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
