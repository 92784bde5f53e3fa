"""The records of experiments/tta: what a method and the bare aggregator got right, in the order of each stream, grouped into cells."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multicrop.compare.run import read_run
from multicrop.compare.statistics import Comparison, compare_runs
from multicrop.record import METRICS

SETTINGS = {"global_view": "global view", "crops_mean": "crops, mean", "dnd": "D&D"}
METHODS = ("tda", "dmn", "bca", "boost", "tent", "mta", "zero", "tpt", "c_tpt")
VIEWS = {"global_view": 1, "crops_mean": 17, "dnd": 17}  # of the tables
RESAMPLES = 20_000  # the least p-value is then 0.0001


class Cell(NamedTuple):
    """What the orders of one row of a table have in common."""

    data: str
    order: str
    setting: str
    views: int
    method: str

    @property
    def tabled(self) -> bool:
        return self.method in METHODS and self.views == VIEWS[self.setting]

    @property
    def place(self) -> tuple:
        shift = self.data.partition(", ")
        return shift[0] != "scenes", self.order != "shuffled", shift[2], list(SETTINGS).index(self.setting), METHODS.index(self.method)


@dataclass(frozen=True)
class Stream:
    """One record: what the method and the bare aggregator got right, in the order of the stream, and what metrics.json says."""

    ids: tuple[str, ...]
    final: np.ndarray
    bare: np.ndarray
    metrics: dict
    cluster: tuple[str, ...] = ()

    def by_id(self, row: str) -> np.ndarray:
        return getattr(self, row)[np.argsort(self.ids)]

    @property
    def clusters(self) -> list[str]:
        """The cluster of each image, in the order of `by_id`; empty where the record has none."""
        return [self.cluster[i] for i in np.argsort(self.ids).tolist()] if self.cluster else []

    def number(self, *path: str) -> float:
        """One number of metrics.json."""
        value = self.metrics
        for name in path:
            value = value[name]
        return value


Runs = dict[int, Stream]  # by the seed of their order


def read(folder: Path) -> dict[Cell, Runs]:
    """The streams of each cell; of two with one seed the newest counts. Raises SystemExit when there is none, or the images differ."""
    found: dict[Cell, Runs] = {}
    images: dict[str, list[str]] = {}
    for path in sorted(folder.rglob(METRICS), key=lambda path: path.stat().st_mtime):
        cell, seed, stream = _read(path.parent)
        if images.setdefault(cell.data, sorted(stream.ids)) != sorted(stream.ids):
            raise SystemExit(f"the runs on {cell.data} did not see the same images: {path.parent}")
        found.setdefault(cell, {})[seed] = stream
    if not found:
        raise SystemExit(f"no finished run below {folder}; run sweep=streams first and pass its paths.output")
    return found


def _read(folder: Path) -> tuple[Cell, int, Stream]:
    record = read_run(folder)
    config, choices, shown = record.config, record.choices, record.predictions
    kind = config["corruption"].get("kind")
    data = choices["dataset"] + (f", {kind} {config['corruption']['severity']}" if kind else "")
    setting = choices["experiment"].removeprefix("tta/")
    cell = Cell(data, config["task"]["order"], setting, record.metrics["views_per_image"], choices["method"])
    stream = Stream(tuple(shown.image_id), shown.correct("final"), shown.correct("aggregated"), record.metrics, tuple(shown.cluster))
    return cell, config["task"]["order_seed"], stream


def gain(runs: Runs) -> Comparison:
    """The method against the bare aggregator on the same images and orders."""
    final, bare = (np.stack([runs[seed].by_id(row) for seed in sorted(runs)]) for row in ("final", "bare"))
    return compare_runs(final, bare, clusters=next(iter(runs.values())).clusters, resamples=RESAMPLES)


def mean(runs: Runs, *path: str) -> float:
    """The mean over orders of one number of metrics.json."""
    return float(np.mean([stream.number(*path) for stream in runs.values()]))


def accuracy(runs: Runs, row: str = "final") -> list[float]:
    """Of each order, 0-1."""
    return [float(getattr(stream, row).mean()) for stream in runs.values()]
