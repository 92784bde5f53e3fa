"""Runs of the storm: kinds of sweeps over tiny data, what a sweep of them leaves, and the result of a job without its times."""

import copy
import gc
import hashlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning.fabric.utilities.registry as registry
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from safetensors.torch import load_file

from multicrop.adapters import descent
from multicrop.config import PACKAGE, register_resolvers
from multicrop.files import write_text
from multicrop.record import RecordError, read_record
from multicrop.runs import sweep
from multicrop.runs.identity import run_identity
from multicrop.runs.session import Session
from multicrop.runs.settings import settings_of
from multicrop.runs.sweep_cache import process_cache

WARM = [f"multicrop.{name}" for name in ("runs.experiment", "runs.zero_shot", "runs.few_shot", "runs.tta", "methods.tda")]
WARM += ["multicrop.adapters.clip_adapter", "multicrop.data.sources.csv", "multicrop.compare.collect", "multicrop.cli.bank"]
WARM += ["multicrop.features.fill"]
CONF = PACKAGE.parent.parent / "conf"
QUIET = ("logger=none", "examples=1", "pictures=0", "trainer.progress=false", "trainer.threads=1", "trainer.batch_size=4")
SHARD_IMAGES = "trainer.shard_images=4"
DESCRIPTIONS = ("prompt=descriptions", "prompt.file={}/texts.json")
FIT = ("task=few_shot", "task.shots=1", "task.selection=fixed", "adapter=clip_adapter", "adapter.epochs=4", "adapter.plan_epochs=1")
SWEEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "bank": (("task=encode", "task.splits=[train,test]", "prompt=template"),),
    "zero-shot": (("aggregator=max", *DESCRIPTIONS),),
    "few-shot fit": (("aggregator=mean_feature", *DESCRIPTIONS, *FIT),),
    "stream": (("aggregator=max", *DESCRIPTIONS, "task=tta", "method=tda", "task.save_every=4"),),
    "sweep": (("aggregator=max", *DESCRIPTIONS), ("aggregator=mean_feature", *DESCRIPTIONS), ("aggregator=entropy", *DESCRIPTIONS)),
}


@dataclass(frozen=True)
class Place:
    """The folders of some runs: inputs, and a folder with the cache, the outputs and what children tell."""

    inputs: Path
    folder: Path
    told: Path | None = None

    @property
    def cache(self) -> Path:
        """The banks, the index of contents and the checkpoints of fits."""
        return self.folder / "cache"

    @property
    def outputs(self) -> Path:
        """The records, the index of finished runs and the saves of streams."""
        return self.folder / "outputs"

    @property
    def scratch(self) -> Path:
        """What children tell."""
        return self.told or self.folder / "scratch"

    def job(self, sweep_name: str, number: int) -> Path:
        """The folder of a job."""
        return self.outputs / sweep_name / str(number)


@dataclass(frozen=True)
class Plan:
    """A sweep: the words of each job, the name of its folder, and words for all jobs."""

    jobs: Sequence[Sequence[str]]
    name: str = "sweep-1"
    more: Sequence[str] = field(default=(SHARD_IMAGES,))


def words_of(inputs: Path, job: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a job."""
    data = [f"dataset.{split}={inputs}/{name}.csv" for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))]
    data += ["dataset=csv", f"dataset.class_names={inputs}/names.json", "model=local", f"model.path={inputs}/model", "crop=random_k1"]
    return (*data, *QUIET, *(word.format(inputs) for word in job))


@cache
def composed(words: tuple[str, ...]) -> DictConfig:
    """The configuration of a job, with Hydra's own, composed once."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(words), return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.job.num, cfg.hydra.job.id, cfg.hydra.mode, cfg.hydra.runtime.output_dir = 0, "0", RunMode.MULTIRUN, "outputs"
    return cfg


def prepared(place: Place, plan: Plan, number: int) -> DictConfig:
    """The configuration of a job as Hydra gives it to the job, after it has written what Hydra writes into the job's folder."""
    words = words_of(place.inputs, (*plan.jobs[number], *plan.more))
    cfg, folder = composed(words), place.job(plan.name, number)
    with open_dict(cfg):
        cfg.paths.cache, cfg.paths.output = str(place.cache), str(place.outputs)
        cfg.hydra.runtime.output_dir, cfg.hydra.job.num = str(folder), number
    HydraConfig.instance().set_config(cfg)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    write_text(folder / ".hydra" / "overrides.yaml", yaml.safe_dump(list(words)))
    cfg = copy.copy(cfg)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def warm(inputs: Path) -> None:
    """Import all modules and load the model, once for all children; nothing that the storm changes is kept."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for module in WARM:
        importlib.import_module(module)
    registry.entry_points = cache(registry.entry_points)  # which every Trainer reads from all installed packages
    descent.CHECKPOINT_SECONDS = 0.0
    cfg = copy.deepcopy(composed(words_of(inputs, (*SWEEPS["zero-shot"][0], SHARD_IMAGES))))  # Hydra makes what it is given read-only
    HydraConfig.instance().set_config(cfg)
    run_identity(Session(settings_of(cfg), None))  # hashes the code
    _ = Session(settings_of(cfg), process_cache()).encoder
    gc.freeze()  # what all children share is not looked through again


def sweep_of(place: Place, plan: Plan, *, shared: bool = True) -> Callable[[], list[dict[str, Any]]]:
    """The work of a child that runs a sweep; it is composed here, in the parent, once for all children.

    Args:
        place: Where.
        plan: The jobs.
        shared: Whether the model that `warm` has loaded serves the jobs.
    """
    for job in plan.jobs:
        composed(words_of(place.inputs, (*job, *plan.more)))
    return partial(play, place, plan, shared=shared)


def play(place: Place, plan: Plan, *, shared: bool = True) -> list[dict[str, Any]]:
    """Run the jobs of a sweep in this process; the outcome of each."""
    sys.path.insert(0, str(place.inputs / "plugin"))
    if not shared:
        process_cache().clear()
    for number in range(len(plan.jobs)):
        sweep.job(prepared(place, plan, number))
    failed = sweep.scan(place.outputs / plan.name, len(plan.jobs)).failed  # what the end of a sweep tells
    told = {int(name.partition(":")[0]): error for name, error in failed.items()}
    return [_outcome(place, plan, number, told.get(number)) for number in range(len(plan.jobs))]


def _outcome(place: Place, plan: Plan, number: int, error: str | None) -> dict[str, Any]:
    """The result of a job, or its error; whether it was skipped."""
    folder = place.job(plan.name, number)
    if error is not None:
        return {"error": error}
    if "task=encode" in plan.jobs[number]:
        return {"result": bank_features(place.cache), "error": None}
    try:
        record = read_record(folder)
        return {"result": result_of(record), "error": None, "skipped": record.folder.resolve() != folder.resolve()}
    except (RecordError, OSError) as error:
        return {"error": str(error)}


def result_of(record: Any) -> dict[str, Any]:
    """What a run found, without times."""
    found, final = record.predictions, record.scores()
    predictions = {"image_id": list(found.image_id), "domain": list(found.domain), "label": found.label.tolist()}
    predictions |= {kind: {row: v.tolist() for row, v in getattr(found, kind).items()} for kind in ("rows", "ranks")}
    predictions |= {"final": [getattr(final, part).tolist() for part in ("top_classes", "top_logits", "log_sum_exp")]}
    metrics = {name: record.metrics.get(name) for name in ("rows", "test", "images", "skipped_images", "views_per_image")}
    parts = dict(record.identity.parts) if record.identity else None
    return plain({"metrics": metrics, "predictions": predictions, "data": record.data, "identity": parts, "model": record.model})


def content_of(folder: Path) -> dict[str, Any]:
    """Everything that a record says, to be compared with what it said before."""
    record = read_record(folder)
    return result_of(record) | plain({"config": record.config, "environment": record.environment, "all metrics": record.metrics})


def plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def bank_features(cache_folder: Path) -> dict[str, str]:
    """A hash of the tensors of each bank, whatever the size of its shards."""
    found = {}
    for folder in sorted({path.parent for path in cache_folder.rglob("shard-*.safetensors")}):
        shards = [load_file(path) for path in sorted(folder.glob("shard-*.safetensors"))]
        parts = [torch.cat([shard[name] for shard in shards]).numpy().tobytes() for name in sorted(shards[0])]
        found[os.fspath(folder.relative_to(cache_folder))] = hashlib.sha256(b"".join(parts)).hexdigest()
    return found
