"""A run as the comparison reads it: a record with its method, its seeds, and its predictions in the order of the image ids."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from multicrop.config import parts_of
from multicrop.record import EXAMPLES, NOT_DECISIVE, Predictions, Record, read_record, training_words

DATA_SEED = "dataset.dataset_seed"  # draws the images; runs that differ in it are pooled (`data_seeds.pooled`)
# Knobs of other rows, of the data set that ood names, and of the record alone
NO_KNOBS = ("task.beside.", "aggregator.facts.", "ood_knobs.", "model.facts.training_data.", "dataset.facts.origin.")
SEEDS = ("seed", "crop_seed", "task.order_seed", DATA_SEED)  # runs that differ only in these are runs of one method


@dataclass(frozen=True)
class Run(Record):
    """A record with the properties by which runs are grouped and paired."""

    @cached_property
    def choices(self) -> dict[str, str]:
        """The option of each config group; for a record without options, the last part of the group's ``_target_``."""
        groups = {k: v["_target_"].rsplit(".", 1)[-1] for k, v in self.config.items() if isinstance(v, dict) and "_target_" in v}
        return {**groups, "task": self.config["task"]["name"], **self.environment.get("choices", {})}

    @cached_property
    def knobs(self) -> dict[str, object]:
        """The values of the configuration that decide the run's numbers, by dotted name, without seeds equal to the run's own."""
        leaves = list(_leaves({k: v for k, v in self.config.items() if k not in NOT_DECISIVE}))
        follows = {name for name, value in leaves if name.endswith(".seed") and value == self.config.get("seed")}
        follows |= {name for name in ("limit", "ood") if self.config.get(name) is None}  # older records have no such knobs
        return {name: value for name, value in leaves if name not in follows and not f"{name}.".startswith(NO_KNOBS)}

    @cached_property
    def seeds(self) -> tuple:
        """The values of ``SEEDS``."""
        return tuple(self.knobs.get(name) for name in SEEDS)

    @cached_property
    def method(self) -> str:
        """A key that is equal for all runs of one method on one data set."""
        return json.dumps({k: v for k, v in self.knobs.items() if k not in SEEDS}, sort_keys=True, default=str)

    @property
    def scored_row(self) -> str:
        """The row of the record whose predictions are read as ``final``."""
        return "final"

    @property
    def task_options(self) -> dict[str, str]:
        """The options that belong to the task: the adapter of a few-shot run, the method of a test-time run."""
        return {group: self.choices.get(group, "?") for group in parts_of(self.choices["task"])}

    @property
    def name(self) -> str:
        """Aggregator, adapter or test-time method, and crops: `dnd + tda, random_k16`."""
        parts = [self.choices.get("aggregator", "?"), *self.task_options.values()]
        return ", ".join([" + ".join(parts), self.choices.get("crop", "?")])

    @property
    def views(self) -> int:
        """Views per image that the final row reads."""
        return int(self.metrics["rows"]["final"].get("views", self.metrics.get("views_per_image", 1)))

    @property
    def seconds(self) -> float:
        """Seconds of scoring: aggregator, and adapter or method."""
        times = self.metrics.get("row_seconds", {})
        return times.get("aggregated", float("nan")) + times.get("final", float("nan"))

    @property
    def shots(self) -> int | None:
        """Shots per class of a few-shot run; None for other tasks."""
        shots = self.knobs.get("task.shots") if self.choices["task"] == "few_shot" else None
        return shots if isinstance(shots, int) else None

    @cached_property
    def sorted_predictions(self) -> Predictions:
        """The predictions in the order of the image ids, so that runs can be paired."""
        scored = self.predictions
        order = np.argsort(np.asarray(scored.image_id), kind="stable")
        places: list[int] = order.tolist()
        ids, domains = [scored.image_id[i] for i in places], [scored.domain[i] for i in places]
        rows, ranks = ({row: values[order] for row, values in found.items()} for found in (scored.rows, scored.ranks))
        clusters = [scored.cluster[i] for i in places if scored.cluster]
        return Predictions(ids, scored.label[order], rows, domains, clusters, ranks)

    @property
    def class_names(self) -> list[str]:
        """The class names; ``class 0``, ``class 1``, ... if the record has none."""
        scored = self.sorted_predictions
        count = int(max(scored.label.max(), *(values.max() for values in scored.rows.values()))) + 1
        return self.data.get("class_names") or [f"class {c}" for c in range(count)]

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return self.data.get("dataset") or self.choices.get("dataset", "unknown")

    @property
    def imported(self) -> dict[str, Any]:
        """Who ran an imported record, and what it was imported from; empty for a record of this installation."""
        return self.environment.get("imported") or {}

    @property
    def origin(self) -> str:
        """Who ran it on which revision: `alice, 1a2b3c4`."""
        revision = str(self.environment.get("git_revision") or "")[:7]
        return ", ".join(filter(None, [self.imported.get("by", "own"), revision]))

    @property
    def training_note(self) -> str:
        """A note on the training data of the model; empty where there is nothing to note."""
        return training_words(self.data, str(self.model.get("name") or self.choices.get("model", "the model")))

    @property
    def domains(self) -> list[str]:
        """The domains of the images, sorted; empty for a data set without domains."""
        return sorted(set(self.sorted_predictions.domain) - {""})

    def same_images(self, other: "Run") -> bool:
        """Whether both runs scored the same images with the same labels, so that they can be paired."""
        sealed = self.identity and other.identity
        known = [run.identity.parts.get("data") if sealed and run.identity else run.data.get("fingerprint") for run in (self, other)]
        one, two = self.sorted_predictions, other.sorted_predictions
        equal = None in known or known[0] == known[1]
        return equal and one.image_id == two.image_id and np.array_equal(one.label, two.label)

    def examples(self) -> list[dict]:
        """The stored pictures of rescued, lost and wrong images; empty if the run stored none."""
        path = self.folder / EXAMPLES
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def read_run(folder: Path) -> Run:
    """Read the run in a folder.

    Args:
        folder: Folder of a record, or of a skipped job that points to one.

    Returns:
        The run.

    Raises:
        RecordError: If the folder has no readable record.
    """
    record = read_record(folder)
    return Run(record.folder, record.config, record.metrics, record.environment, record.data)


def _leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
