"""The record of a run: the files in its folder, and how they are written and read.

A record holds config.yaml (resolved configuration), data.json (data set, class names), predictions.parquet (one row per image),
environment.json (machine, versions, time), identity.json (what decides the run, as hashes, and the model), examples.json (small
pictures), files of the task (splits.json, stream.csv, chosen.yaml, adapter.safetensors, choice.csv), unknown.parquet (scores beside those
of images of unknown classes), metrics.json, and manifest.json (a hash per file), which is written last. A sweep job whose run was finished
before has record.json instead; a failed job has failed.json.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from multicrop.files import (
    MANIFEST,
    Identity,
    as_yaml,
    atomic,
    damaged_files,
    naming,
    redacted,
    write_manifest,
    write_text,
)
from multicrop.record.detection import Detection
from multicrop.record.jobs import KNOB, METRICS, POINTER, content, failure, resolved
from multicrop.record.parts import PARTS, PartFolder
from multicrop.record.predictions import ROWS, Predictions, RecordError, damaged, read_scores
from multicrop.record.protocol import protocol_of
from multicrop.record.scores import Scores

FORMAT = 4  # of the folder; records of another format are refused
# Parts of a configuration without effect on the numbers
NOT_DECISIVE = ("paths", "logger", "trainer", "engine", "rerun", "record", "pictures", "examples", "logits")
CONFIG, DATA, PREDICTIONS, ENVIRONMENT = "config.yaml", "data.json", "predictions.parquet", "environment.json"
EXAMPLES, SPLITS, STREAM, PICTURE = "examples.json", "splits.json", "stream.csv", "explanations.png"
CHOSEN, ADAPTER, CHOICE, PARTED = "chosen.yaml", "adapter.safetensors", "choice.csv", f"{PREDICTIONS}/{PARTS}"
IDENTITY, UNKNOWN = "identity.json", "unknown.parquet"
OF_TASKS = (SPLITS, STREAM, CHOSEN, ADAPTER, CHOICE, UNKNOWN)
FILES = (CONFIG, DATA, PREDICTIONS, EXAMPLES, *OF_TASKS, ENVIRONMENT, IDENTITY, PICTURE, METRICS, MANIFEST)


def write_record(
    folder: Path,
    *,
    config: dict,
    metrics: Mapping,
    predictions: Predictions | PartFolder,
    environment: Mapping,
    data: Mapping,
    examples: Sequence[Mapping] = (),
    files: Mapping[str, str | bytes] | None = None,
    identity: Identity | None = None,
    model: Mapping | None = None,
) -> None:
    """Write the record of a run, without the values of secret variables. The manifest is written last: a record that has it is complete.

    An older record in the folder is removed first, so that its files are never read together with new ones.

    Args:
        folder: Folder of the run; it must exist.
        config: Resolved configuration.
        metrics: Metrics of the run, with ``rows``: per row ``accuracy``, ``views`` that it reads per image, and its comparison.
        predictions: Labels and predictions; or the parts of those of a large run, in the folder ``predictions.parquet``.
        environment: Machine, versions, time, command and chosen options.
        data: Scored data: ``dataset``, ``split``, ``fingerprint``, ``class_names``.
        examples: Pictures of single images, as ``show.examples`` makes them.
        files: Files of the task, by name: text or bytes.
        identity: What decides the run.
        model: Facts of the model, such as its name and its number of parameters.

    Raises:
        OSError: If a file cannot be written; the message names it.
    """
    for name in (POINTER, *reversed((PARTED, *FILES))):  # a pointer leads elsewhere; the manifest before what it seals
        if name != PICTURE and (folder / name).is_file():  # the picture was drawn before the record is written
            (folder / name).unlink()
    if isinstance(predictions, Predictions) and (folder / PREDICTIONS).is_dir():
        shutil.rmtree(folder / PREDICTIONS)
    with naming(folder / PREDICTIONS, KNOB):
        predictions.write(folder / PREDICTIONS)
    texts: dict[str, str | bytes] = {CONFIG: as_yaml(redacted(config)), DATA: json.dumps(data, indent=1), **(files or {})}
    texts |= {EXAMPLES: json.dumps(examples)} if examples else {}
    if identity is not None:
        texts[IDENTITY] = json.dumps({"key": identity.key, "parts": dict(identity.parts), "model": redacted(dict(model or {}))}, indent=1)
    metrics = {"format": FORMAT, "protocol": protocol_of(config), **metrics}
    texts |= {ENVIRONMENT: json.dumps(redacted(dict(environment)), indent=1), METRICS: json.dumps(metrics, indent=1)}
    for name, text in texts.items():
        with naming(folder / name, KNOB):
            if isinstance(text, str):
                write_text(folder / name, text)
                continue
            with atomic(folder / name) as partial:
                partial.write_bytes(text)
    with naming(folder / MANIFEST, KNOB):
        write_manifest(folder, [name for name in (PARTED, *FILES[:-1]) if (folder / name).is_file()])


@dataclass(frozen=True)
class Record:
    """One finished run.

    Args:
        folder: Its folder.
        config: The resolved configuration (config.yaml).
        metrics: The numbers of the run (metrics.json): per row its accuracy, cost and comparison with the global view.
        environment: Machine, versions, time, command and chosen options (environment.json).
        data: What was scored (data.json): data set, split, class names, and a fingerprint of the images.
    """

    folder: Path
    config: dict
    metrics: dict
    environment: dict
    data: dict

    @cached_property
    def predictions(self) -> Predictions:
        """The predictions in the order in which the images were scored."""
        return Predictions.read(self.folder / PREDICTIONS)

    def scores(self, row: str = "final") -> Scores:
        """The logits of a row that the record keeps.

        Args:
            row: Name of the row.

        Returns:
            Its highest logits, or those of all classes (``logits=all``), in the order of ``predictions``.

        Raises:
            RecordError: If the record keeps no logits of this row, or the file is damaged.
        """
        return read_scores(self.folder / PREDICTIONS, row)

    @property
    def detection(self) -> Detection | None:
        """The scores of images of known and unknown classes; None for a run without ``ood``, or from before they were written."""
        return Detection.read(path) if (path := self.folder / UNKNOWN).is_file() else None

    @cached_property
    def _decisive(self) -> dict:
        return content(path) if (path := self.folder / IDENTITY).is_file() else {}

    @property
    def identity(self) -> Identity | None:
        """What decided the run; None for a record that was written without it."""
        return Identity(self._decisive["parts"]) if "parts" in self._decisive else None

    @property
    def model(self) -> dict:
        """Facts of the model: name, architecture, number of parameters, hash of the weights, precision; empty where none were written."""
        return self._decisive.get("model", {})

    @property
    def protocol(self) -> dict[str, int]:
        """The version of every component (`protocol.VERSIONS`); 1 in a record that was written without them."""
        return dict.fromkeys(protocol_of(self.config), 1) | self.metrics.get("protocol", {})

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy of the final row, from 0 to 1."""
        return self.metrics["rows"]["final"]["accuracy"]


def read_record(folder: Path) -> Record:
    """Read the record in a folder, or the record that the folder's record.json points to.

    Args:
        folder: The folder of a run.

    Returns:
        The record, whose files agree with its manifest.

    Raises:
        RecordError: If the run failed or has not finished, or a file is missing, damaged or of another format.
    """
    folder = resolved(folder)
    if not (folder / METRICS).is_file():
        failed = failure(folder)
        unfinished = f"no {METRICS}, which a run writes last, and no {POINTER} to an earlier record; the run was killed or has not finished"
        raise RecordError(f"{folder}: {unfinished if failed is None else f'the run failed ({failed})'}")
    rows = (metrics := content(folder / METRICS)).get("rows")
    if not isinstance(rows, dict) or not all(isinstance(rows.get(r), dict) and "accuracy" in rows[r] for r in ROWS):
        raise damaged(folder / METRICS, f"expected an accuracy for each of the rows {', '.join(ROWS)}")
    _check_format(folder, metrics)
    if missing := [name for name in (CONFIG, DATA, ENVIRONMENT, PREDICTIONS) if not (folder / name).exists()]:
        raise RecordError(f"{folder}: {', '.join(missing)} is missing from the record; run the experiment again")
    _check_manifest(folder)
    config = content(folder / CONFIG)
    if "name" not in (config.get("task") or {}):
        raise damaged(folder / CONFIG, "expected task.name")
    return Record(folder, config, metrics, content(folder / ENVIRONMENT), content(folder / DATA))


def stored_accuracy(folder: Path) -> float | None:
    """The accuracy of the final row in metrics.json, which is checked against the manifest; None if there is none."""
    metrics = content(folder / METRICS)
    _check_format(folder, metrics)
    _check_manifest(folder, METRICS)
    return metrics.get("rows", {}).get("final", {}).get("accuracy")


def _check_format(folder: Path, metrics: Mapping) -> None:
    """Raise RecordError where the record has another format than this version writes."""
    if (found := metrics.get("format", 1)) != FORMAT:
        what = "update multicrop" if isinstance(found, int) and found > FORMAT else "run the experiment again"
        raise RecordError(f"{folder}: {METRICS} has format {found}, this version reads format {FORMAT}; {what}")


def _check_manifest(folder: Path, *names: str) -> None:
    """Raise RecordError where there is no manifest, or files (by default all) differ from it."""
    if not (folder / MANIFEST).is_file():
        raise RecordError(f"{folder}: no {MANIFEST}, which a run writes last; the run was killed or has not finished")
    if changed := damaged_files(folder, *names):
        message = f"{', '.join(changed)} was damaged or changed after the run had written it, or {MANIFEST} is another run's"
        raise RecordError(f"{folder}: {message}; run the experiment again")
