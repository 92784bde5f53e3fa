"""The rows of a run beside what its task predicts with: global view, crops averaged, aggregator, further aggregators."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from multicrop.compare.run import Run
from multicrop.config import weight_of
from multicrop.files import Identity
from multicrop.record import BESIDE, Predictions

BASELINES = {"global": "global view", "crops_mean": "crops averaged"}
ZERO_SHOT = "zero_shot"  # the task whose prediction is the aggregator's


@dataclass(frozen=True)
class RowRun(Run):
    """One row of a run, as a run of its own on the same images, views and seeds."""

    source: Run
    row: str

    @cached_property
    def choices(self) -> dict[str, str]:
        """The options of the source, with the row in place of its aggregator; the global view has the crop policy that makes no crops."""
        chosen = {"aggregator": BASELINES.get(self.row, self.row.removeprefix(BESIDE))} if self.row != "aggregated" else {}
        return self.source.choices | chosen | ({"crop": "global"} if self.row == "global" else {})

    @cached_property
    def knobs(self) -> dict[str, object]:
        """The knobs that can decide the row."""
        found = self.source.knobs if self.config is self.source.config else super().knobs
        return {name: value for name, value in found.items() if self._decides(name)}

    @property
    def scored_row(self) -> str:
        """The row."""
        return self.row

    @property
    def imported(self) -> dict[str, Any]:
        """Who ran an imported record, with the configuration of the row."""
        found = self.source.imported
        return found | {"configuration": found["configurations"][self.row]} if self.row in found.get("configurations", {}) else found

    def _decides(self, name: str) -> bool:
        group = name.partition(".")[0]
        if self.row in BASELINES:
            return group in ("dataset", "corruption", "model", "prompt") or (group == "crop" and self.row != "global")
        of_task = group in ("adapter", "method") or (group == "task" and name != "task.fusion_weight")
        return not of_task or self.choices["task"] == ZERO_SHOT

    @cached_property
    def seeds(self) -> tuple:
        """The seeds of the source, so that rows are paired as their runs are."""
        return self.source.seeds

    @cached_property
    def method(self) -> str:
        """A key that is equal for rows of one method: baselines that agree on every image are one, whatever the prompts of their runs."""
        if self.row not in BASELINES:
            return super().method
        groups = ("model", "crop") if self.row == "crops_mean" else ("model",)
        decisive = {name: value for name, value in self.knobs.items() if name.partition(".")[0] in groups}
        predicted = hash(self.source.sorted_predictions.rows["global"].tobytes())
        return f"{self.row} {predicted} {json.dumps(decisive, sort_keys=True, default=str)} {self.imported.get('by', '')}"

    @property
    def name(self) -> str:
        """What tables call the row: the global view needs no crops."""
        return BASELINES["global"] if self.row == "global" else super().name

    @property
    def task_options(self) -> dict[str, str]:
        """None: the row reads neither adapter nor method."""
        return {}

    @property
    def shots(self) -> None:
        """None: the row reads no support set."""
        return

    @property
    def identity(self) -> Identity | None:
        """The identity of the source."""
        return self.source.identity

    @cached_property
    def sorted_predictions(self) -> Predictions:
        """The predictions of the source, with the row in place of the final one."""
        scored = self.source.sorted_predictions
        ranks = {**scored.ranks, "final": scored.ranks[self.row]} if self.row in scored.ranks else {}
        return replace(scored, rows={**scored.rows, "final": scored.rows[self.row]}, ranks=ranks)

    @property
    def views(self) -> int:
        """Views per image that the row reads."""
        return int(self.source.metrics["rows"][self.row].get("views", self.source.views))

    @property
    def seconds(self) -> float:
        """Seconds of scoring."""
        return self.source.metrics.get("row_seconds", {}).get(self.row, float("nan"))

    def examples(self) -> list[dict]:
        """None: a record's examples are those of its final row."""
        return []


def rows_of(run: Run) -> list[RowRun]:
    """The rows of a run beside its final one.

    Args:
        run: A run, or a pooled one.

    Returns:
        The global view; the crops averaged, where there are crops; the aggregator, where the task adds to it; the further aggregators.
    """
    own: dict[str, dict[str, Any]] = {"global": {}}  # what the configuration of each row has in place of the run's
    if int(run.metrics.get("views_per_image", 1)) > 1:
        own["crops_mean"] = {}
    if run.choices["task"] != ZERO_SHOT:
        own["aggregated"] = {}
    task = run.config["task"]
    for name, values in (task.get("beside") or {}).items():
        if BESIDE + name in run.sorted_predictions.rows:
            weight = {} if run.imported else {"fusion_weight": weight_of(values)}  # exports have no knobs
            own[BESIDE + name] = {"aggregator": values, "task": task | weight}
    configurations = run.imported.get("configurations") or {}
    for row in own.keys() & configurations.keys():
        own[row]["imported"] = run.config["imported"] | {"configuration": configurations[row]}
    return [
        RowRun(run.folder, run.config | values if values else run.config, run.metrics, run.environment, run.data, run, row)
        for row, values in own.items()
    ]


def is_baseline(runs: Sequence[Run]) -> bool:
    """Whether these are runs of a baseline row, which every table shows."""
    return runs[0].scored_row in BASELINES
