"""The records of experiments/tta: what a method and the bare aggregator got right, in the order of each stream, grouped into cells."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from experiments.study import data_of, distance

from multicrop.compare.run import read_run
from multicrop.compare.statistics import Comparison, compare_runs
from multicrop.record import METRICS

SETTINGS = {"global_view": "global view", "crops_mean": "crops, mean", "dnd": "D&D", "dnd_fused": "D&D fused"}
ONLINE = ("tda", "tda_views", "dmn", "bca", "boost", "tent", "dota", "oga", "onzeta_short", "ecalp", "dpe", "stata")
METHODS = (*ONLINE, "mta", "zero", "tps", "tpt", "c_tpt")
HOSTS = ("none", *METHODS)
VIEWS = {"global_view": 1, "crops_mean": 17, "dnd": 17, "dnd_fused": 17}  # of the tables
RESAMPLES = 20_000  # the least p-value is then 0.0001


class Cell(NamedTuple):
    """What the seeds of one row of a table have in common; data: `scenes, middle`, shift: `fog 3` or nothing."""

    data: str
    shift: str
    order: str
    setting: str
    views: int
    method: str

    @property
    def tabled(self) -> bool:
        return self.method in HOSTS and self.views == VIEWS[self.setting]

    @property
    def place(self) -> tuple:
        return (
            *distance(self.data),
            self.order != "shuffled",
            self.order,
            self.shift,
            list(SETTINGS).index(self.setting),
            HOSTS.index(self.method),
        )

    @property
    def stream(self) -> str:
        """What all methods and settings of a stream have in common: `scenes, middle, fog 3`."""
        return ", ".join(part for part in (self.data, self.shift, self.order) if part not in ("", "shuffled"))


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


Runs = dict[int, Stream]  # by their seed, which draws crops and order


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
    shift = f"{kind} {config['corruption']['severity']}" if kind else ""
    setting = choices["experiment"].removeprefix("tta/")
    cell = Cell(data_of(record), shift, config["task"]["order"], setting, record.metrics["views_per_image"], choices["method"])
    stream = Stream(tuple(shown.image_id), shown.correct("final"), shown.correct("aggregated"), record.metrics, tuple(shown.cluster))
    return cell, config["task"]["order_seed"], stream


def gain(runs: Runs) -> Comparison:
    """The method against the bare aggregator on the same images, crops and orders."""
    return _compared((runs, "final"), (runs, "bare"))


def difference(runs: Runs, others: Runs) -> Comparison:
    """A method in one setting against the same method in another, over the seeds that both have."""
    return _compared((runs, "final"), (others, "final"))


def _compared(*sides: tuple[Runs, str]) -> Comparison:
    seeds = sorted(set.intersection(*(set(runs) for runs, _ in sides)))
    new, old = (np.stack([runs[seed].by_id(row) for seed in seeds]) for runs, row in sides)
    return compare_runs(new, old, clusters=sides[0][0][seeds[0]].clusters, resamples=RESAMPLES)


def mean(runs: Runs, *path: str) -> float:
    """The mean over seeds of one number of metrics.json."""
    return float(np.mean([stream.number(*path) for stream in runs.values()]))


def accuracy(runs: Runs, row: str = "final") -> list[float]:
    """Of each seed, 0-1."""
    return [float(getattr(stream, row).mean()) for stream in runs.values()]
