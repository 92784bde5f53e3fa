"""Runs that differ in the seed of their data alone are pooled: one run over the images of all of these data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from multicrop.compare.run import DATA_SEED, Run
from multicrop.files import content_hash
from multicrop.record import Predictions


@dataclass(frozen=True)
class PooledRun(Run):
    """Runs of one method on data sets drawn by seed, as one run: classes and clusters of two data sets are never the same."""

    parts: tuple[Run, ...] = ()

    @cached_property
    def identity(self) -> None:
        """A pooled run has no identity of its own; its images are known by their fingerprints."""
        return

    @cached_property
    def predictions(self) -> Predictions:
        """The predictions of all parts, one part after the other."""
        scored = [part.predictions for part in self.parts]
        named = [str(part.knobs[DATA_SEED]) for part in self.parts]
        pairs = list(zip(scored, accumulate([len(part.class_names) for part in self.parts], initial=0), strict=False))
        seeded = list(zip(named, scored, strict=True))
        clustered = any(any(one.cluster) for one in scored)
        return Predictions(
            [f"{seed}/{name}" for seed, one in seeded for name in one.image_id],
            np.concatenate([one.label + first for one, first in pairs]),
            {row: np.concatenate([one.rows[row] + first for one, first in pairs]) for row in _shared([one.rows for one in scored])},
            [domain for one in scored for domain in one.domain],
            [name and f"{seed}/{name}" for seed, one in seeded for name in one.cluster] if clustered else (),
            {row: np.concatenate([one.ranks[row] for one in scored]) for row in _shared([one.ranks for one in scored])},
        )


def _shared(parts: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """The rows that all parts have."""
    return [row for row in parts[0] if all(row in other for other in parts)]


def pooled(runs: Sequence[Run]) -> list[Run]:
    """Pool the runs of each method and seeds that differ in ``dataset.dataset_seed``; other runs stay as they are.

    A pooled run is a sample of the generator's clusters (families of sprites of scenes): a comparison resamples those of all data sets
    together, so that its interval holds for the generator and not for one data set that it drew.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.method, run.seeds[:-1]), []).append(run)
    return [run for group in groups.values() for run in _pool(group)]


def _pool(group: Sequence[Run]) -> Sequence[Run]:
    """One run of a group with several data seeds; of two runs with one data seed the last counts."""
    parts = {str(run.knobs.get(DATA_SEED)): run for run in group}
    if len(parts) == 1:
        return group
    found = [parts[seed] for seed in sorted(parts, key=lambda seed: (len(seed), seed))]
    first, seeds = found[0], [str(run.knobs[DATA_SEED]) for run in found]
    times = [run.metrics.get("row_seconds", {}) for run in found]
    data = {
        "dataset": f"{first.dataset}, {len(found)} data seeds",
        "split": first.data.get("split"),
        **{name: first.data.get(name) for name in ("limit", "training_data", "seen")},
        "fingerprint": content_hash(*(str(run.data.get("fingerprint")) for run in found)),
        "class_names": [f"{name} (data seed {seed})" for seed, run in zip(seeds, found, strict=True) for name in run.class_names],
    }
    config = {**first.config, "dataset": {**first.config["dataset"], DATA_SEED.split(".")[1]: ", ".join(seeds)}}
    metrics = {**first.metrics, "row_seconds": {row: sum(time[row] for time in times) for row in times[0] if all(row in t for t in times)}}
    metrics |= {"trust": _mean_trust([run.metrics.get("trust", {}) for run in found])}
    return [PooledRun(first.folder, config, metrics, first.environment, data, tuple(found))]


def _mean_trust(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The measures of confidence of each row that all parts have, means over the parts."""
    rows = {row: [part[row] for part in parts] for row in parts[0] if all(row in part for part in parts)}
    return {
        row: {name: float(np.mean([one[name] for one in found])) for name in found[0] if all(name in one for one in found)}
        for row, found in rows.items()
    }
