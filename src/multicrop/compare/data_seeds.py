"""Runs that differ in the seed of their data alone are pooled: one run over the images of all of these data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

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
        by_seed = [(str(part.knobs[DATA_SEED]), one) for part, one in zip(self.parts, scored, strict=True)]
        first_classes = accumulate([len(part.class_names) for part in self.parts[:-1]], initial=0)  # classes of the parts before
        moved = list(zip(scored, first_classes, strict=True))
        clustered = any(any(one.cluster) for one in scored)
        return Predictions(
            [f"{seed}/{name}" for seed, one in by_seed for name in one.image_id],
            np.concatenate([one.label + first for one, first in moved]),
            {row: np.concatenate([one.rows[row] + first for one, first in moved]) for row in _shared([one.rows for one in scored])},
            [domain for one in scored for domain in one.domain],
            [name and f"{seed}/{name}" for seed, one in by_seed for name in one.cluster] if clustered else (),
            {row: np.concatenate([one.ranks[row] for one in scored]) for row in _shared([one.ranks for one in scored])},
        )


def _shared(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that all parts have, such as those of rows."""
    return [name for name in parts[0] if all(name in other for other in parts)]


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
    by_seed = {seed: parts[seed] for seed in sorted(parts, key=lambda seed: (len(seed), seed))}
    found = list(by_seed.values())
    first = found[0]
    config = {**first.config, "dataset": {**first.config["dataset"], DATA_SEED.split(".")[1]: ", ".join(by_seed)}}
    seconds = [run.metrics.get("row_seconds", {}) for run in found]
    measured = {
        "row_seconds": {row: sum(one[row] for one in seconds) for row in _shared(seconds)},
        "trust": _mean_trust([run.metrics.get("trust", {}) for run in found]),
    }
    return [PooledRun(first.folder, config, {**first.metrics, **measured}, first.environment, _data(by_seed), tuple(found))]


def _data(by_seed: Mapping[str, Run]) -> dict[str, Any]:
    """What a record says of its data set, for runs by data seed."""
    first = next(iter(by_seed.values()))
    return {
        "dataset": f"{first.dataset}, {len(by_seed)} data seeds",
        **{name: first.data.get(name) for name in ("split", "limit", "training_data", "seen")},
        "fingerprint": content_hash(*(str(run.data.get("fingerprint")) for run in by_seed.values())),
        "class_names": [f"{name} (data seed {seed})" for seed, run in by_seed.items() for name in run.class_names],
    }


def _mean_trust(parts: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The measures of confidence of each row that all parts have, means over the parts."""
    means: dict[str, dict[str, float]] = {}
    for row in _shared(parts):
        measures = [part[row] for part in parts]
        means[row] = {name: float(np.mean([one[name] for one in measures])) for name in _shared(measures)}
    return means
