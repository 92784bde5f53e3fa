"""The record of a run in one directory, which reports and comparisons read, and nothing else.

config.yaml (resolved), data.json (what was scored, class names), predictions.parquet, examples.json (small pictures), environment.json
(where and how), and metrics.json, which comes last.
"""

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor

from multicrop.compare.statistics import compare
from multicrop.features import Bank
from multicrop.files import redacted, write_text
from multicrop.runs.tasks import ROWS

PACKAGES = ("torch", "torchvision", "lightning", "transformers", "hydra-core", "POT", "numpy", "scipy")
TOP_LOGITS = 5


def row_metrics(results: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Accuracy of each row, and its paired difference to the global view."""
    correct = {row: (results[row].argmax(1) == results["label"]).numpy() for row in ROWS}
    return {row: {"accuracy": float(correct[row].mean()), **asdict(compare(correct[row], correct["global"]))} for row in ROWS}


def predictions_table(results: dict[str, Tensor], bank: Bank) -> pa.Table:
    """One row an image: id, domain, label, the prediction of each row, the top classes and logits of the final one."""
    indices = results["index"].tolist()
    top = results["final"].topk(min(TOP_LOGITS, results["final"].shape[1]))
    columns = {
        "image_id": [bank.images.ids[i] for i in indices],
        "domain": [bank.images.domains[i] if bank.images.domains else "" for i in indices],
        "label": results["label"].tolist(),
        **{f"{row}_prediction": results[row].argmax(1).tolist() for row in ROWS},
        "top_classes": top.indices.tolist(),
        "top_logits": top.values.tolist(),
    }
    return pa.table(columns)


def class_table(results: dict[str, Tensor], class_names: Sequence[str]) -> list[dict[str, object]]:
    """One row a class that has images: name, images, and the accuracy of the final row and of the global view."""
    label = results["label"]
    final, base = (results[row].argmax(1) == label for row in ("final", "global"))
    counts = torch.bincount(label, minlength=len(class_names)).tolist()
    return [
        {"class": name, "images": n, "accuracy": float(final[label == c].float().mean()), "global": float(base[label == c].float().mean())}
        for c, (name, n) in enumerate(zip(class_names, counts, strict=True))
        if n
    ]


def environment(*, seed: int, seconds: float) -> dict[str, object]:
    """Where and how the run was made."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **_installation(),
        "argv": sys.argv,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "seconds": seconds,
        "peak_memory_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }


def write_record(
    folder: Path, *, config: str, metrics: dict, predictions: pa.Table, facts: dict, data: dict, examples: Sequence[dict] = ()
) -> None:
    """Write the record; metrics.json comes last, so a record that has it is whole. Values of secret variables are left out."""
    write_text(folder / "config.yaml", redacted(config))
    write_text(folder / "data.json", json.dumps(data, indent=1))
    if examples:
        write_text(folder / "examples.json", json.dumps(examples))
    pq.write_table(predictions, folder / "predictions.parquet")
    write_text(folder / "environment.json", redacted(json.dumps(facts, indent=1)))
    write_text(folder / "metrics.json", json.dumps(metrics, indent=1))


def as_yaml(config: dict) -> str:
    """A configuration as YAML, by libyaml where PyYAML has it, a tenth of the time."""
    return yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, allow_unicode=True)


@cache
def _installation() -> dict[str, object]:
    """What stays the same while a process lives, whatever the number of its runs: the code that it has loaded, and the machine."""
    return {
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in PACKAGES},
    }


def _git_revision() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
