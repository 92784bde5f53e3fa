"""Records in formats that others read: CSV, a data set for the HuggingFace hub, and Every Eval Ever."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.compare import every_eval_ever
from multicrop.compare.rows import BASELINES, rows_of
from multicrop.compare.run import SEEDS, Run
from multicrop.files import atomic, content_hash, make_folder, write_text

GROUPS = ("task", "crop", "aggregator", "adapter", "method", "prompt", "corruption", "experiment")
MEASURED = ("accuracy", "top5", "views", "difference", "low", "high", "p_value", "rescued", "lost", "clusters", "test")
RUNS, IMAGES = "runs", "images"
CARD = f"""---
configs:
- config_name: {RUNS}
  data_files: {RUNS}.parquet
- config_name: {IMAGES}
  data_files: {IMAGES}.parquet
---
Results of multicrop {version("multicrop")}. `datasets.load_dataset(FOLDER, "{RUNS}")` has a line per run and row of its table,
`"{IMAGES}"` one per run, row and image. Accuracies are from 0 to 1; differences are to the global view.
"""


def run_lines(run: Run, name: str) -> list[dict[str, Any]]:
    """One line per row of a run: what was run on what, and its numbers.

    Args:
        run: The run.
        name: What names it among the runs that are exported.
    """
    model, options = run.model, run.choices
    shared = {
        "run": name,
        "dataset": run.dataset,
        "split": run.data.get("split"),
        "fingerprint": run.data.get("fingerprint"),
        "limit": run.data.get("limit"),
        "images": len(run.predictions),
        "classes": len(run.class_names),
        **{group: options.get(group) for group in GROUPS},
        "dataset_option": options.get("dataset"),
        "model_option": options.get("model"),
        "model": model.get("name") or options.get("model"),
        "weights": model.get("weights"),
        "training_data": _listed(run.data.get("training_data")),
        "seen_in_training": _listed(run.data.get("seen")),
        **dict(zip(SEEDS, run.seeds, strict=True)),
    }
    facts = {
        "identity": run.identity.key if run.identity else None,
        "protocol_version": json.dumps(run.protocol, sort_keys=True),
        "git_revision": run.environment.get("git_revision"),
        "command": " ".join(run.environment.get("argv", [])),
    }
    seconds, configured = run.metrics.get("row_seconds", {}), _configurations(run)
    lines = []
    for row, values in run.metrics["rows"].items():
        own = {"seconds": seconds.get(row), "configuration": configured.get(row, configured["final"])}
        lines.append(shared | {"row": row} | {measure: values.get(measure) for measure in MEASURED} | own | facts)
    return lines


def _configurations(run: Run) -> dict[str, str]:
    """A hash of what decides each row that is a method of its own: equal for the rows of two runs that are one method."""
    return {"final": content_hash(run.method)} | {row.row: content_hash(row.method) for row in rows_of(run) if row.row not in BASELINES}


def image_lines(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """One line per row and image: label and prediction by their names, and the rank of the label.

    Args:
        run: The run.
        name: What names it among the runs that are exported.
    """
    scored, names = run.predictions, run.class_names
    for row, predicted in scored.rows.items():
        correct = scored.correct(row)
        for place, image_id in enumerate(scored.image_id):
            yield {
                "run": name,
                "row": row,
                "image_id": image_id,
                "domain": scored.domain[place],
                "cluster": scored.cluster[place] if scored.cluster else "",
                "label": names[int(scored.label[place])],
                "prediction": names[int(predicted[place])],
                "label_number": int(scored.label[place]),
                "prediction_number": int(predicted[place]),
                "correct": bool(correct[place]),
                "rank": int(scored.ranks[row][place]) if row in scored.ranks else None,
            }


def export(runs: Sequence[Run], folder: Path, form: str, *, organization: str = "unknown") -> list[Path]:
    """Write records in a format for others.

    Args:
        runs: Finished runs.
        folder: The folder to write to.
        form: A name in ``FORMATS``.
        organization: Who ran them.

    Returns:
        The files.
    """
    make_folder(folder, "-o")
    return FORMATS[form](runs, folder, organization)


def _listed(names: str | Sequence[str] | None) -> str | None:
    """Names in one cell."""
    return names if isinstance(names, str) or names is None else ", ".join(names)


def names_of(runs: Sequence[Run]) -> list[str]:
    """The path of each run's folder below what all have in common."""
    folders = [run.folder.resolve() for run in runs]
    shared = os.path.commonpath([folder.parent for folder in folders])
    return [folder.relative_to(shared).as_posix() for folder in folders]


def _tables(runs: Sequence[Run], organization: str) -> Mapping[str, list[dict[str, Any]]]:
    named = list(zip(runs, names_of(runs), strict=True))
    whole = [line | {"by": organization} for run, name in named for line in run_lines(run, name)]
    return {RUNS: whole, IMAGES: [line for run, name in named for line in image_lines(run, name)]}


def _csv(runs: Sequence[Run], folder: Path, organization: str) -> list[Path]:
    """runs.csv and images.csv."""
    for name, lines in _tables(runs, organization).items():
        with atomic(folder / f"{name}.csv") as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    return [folder / f"{name}.csv" for name in (RUNS, IMAGES)]


def _hub(runs: Sequence[Run], folder: Path, organization: str) -> list[Path]:
    """runs.parquet, images.parquet and the card that says which is which."""
    for name, lines in _tables(runs, organization).items():
        with atomic(folder / f"{name}.parquet") as partial:
            pq.write_table(pa.Table.from_pylist(lines), partial)
    write_text(folder / "README.md", CARD)
    return [folder / name for name in (f"{RUNS}.parquet", f"{IMAGES}.parquet", "README.md")]


def _every_eval_ever(runs: Sequence[Run], folder: Path, organization: str) -> list[Path]:
    """A JSON file per run, and a JSONL file of its images."""
    written = []
    for run, name in zip(runs, names_of(runs), strict=True):
        whole = every_eval_ever.Evaluation(run, run_lines(run, name), name, organization)
        written += whole.write(folder, image_lines(run, name))
    return written


FORMATS: dict[str, Callable[[Sequence[Run], Path, str], list[Path]]] = {"csv": _csv, "hf": _hub, "every-eval-ever": _every_eval_ever}
