"""AUROC and FPR95 of unknown classes with paired intervals over crop seeds and clusters of known and of unknown images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from multicrop.compare.resampling import cluster_numbers, percentiles
from multicrop.compare.trust import KEPT

RESAMPLES = 5000
MEASURES = "auroc", "fpr95"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds or a difference of two, from 0 to 1 or -1 to 1, with its 95 % interval and a two-sided p-value against zero."""

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Draws:
    """Resamples of seeds, and of clusters of known and of unknown images; drawn once, so that all settings and scores are paired.

    Args:
        seeds: Number of crop seeds.
        known: The cluster of each known image, ``""`` for an image in none.
        unknown: The cluster of each unknown image.
        resamples: Number of resamples.
    """

    seeds: int
    known: Sequence[str]
    unknown: Sequence[str]
    resamples: int = RESAMPLES

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """The number of the cluster of each image: known, unknown."""
        sides = [(side, cluster_numbers(side, len(side))) for side in (self.known, self.unknown)]
        return [np.arange(len(side)) if numbers is None else numbers for side, numbers in sides]

    @cached_property
    def drawn(self) -> list[np.ndarray]:
        """How often each seed, known cluster and unknown cluster is drawn; the first resample is the data themselves."""
        generator, found = np.random.default_rng(0), []
        for count in (self.seeds, *(int(side.max()) + 1 for side in self.groups)):
            counts = generator.multinomial(count, np.full(count, 1 / count), self.resamples)
            found.append(np.concatenate([np.ones((1, count), dtype=counts.dtype), counts]))
        return found

    def over_seeds(self, each: Sequence[np.ndarray]) -> np.ndarray:
        """The mean over the drawn seeds."""
        return (self.drawn[0] * np.stack(each, axis=1)).sum(1) / self.seeds

    def auroc(self, known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """In each resample: the probability that a known image scores above an unknown one; of one seed."""
        above = (known[:, None] > unknown).astype(float) + 0.5 * (known[:, None] == unknown)
        rows, columns = self.groups
        pairs = np.zeros((rows.max() + 1, columns.max() + 1))
        np.add.at(pairs, (rows[:, None], columns[None]), above)
        _, of_known, of_unknown = self.drawn
        total = (of_known @ np.bincount(rows)) * (of_unknown @ np.bincount(columns))
        return ((of_known @ pairs) * of_unknown).sum(1) / total

    def fpr95(self, known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """In each resample: the share of unknown images at or above the highest threshold that keeps 95 % of the known; of one seed."""
        best, worst = np.argsort(-known, kind="stable"), np.argsort(unknown, kind="stable")
        (rows, columns), (_, of_known, of_unknown) = self.groups, self.drawn
        kept, below = of_known[:, rows[best]].cumsum(1), of_unknown[:, columns[worst]].cumsum(1)
        threshold = known[best][(kept >= KEPT * kept[:, -1:] - 1e-9).argmax(1)]
        under = np.searchsorted(unknown[worst], threshold, "left")
        missed = np.where(under > 0, below[np.arange(len(below)), under - 1], 0)
        return 1 - missed / below[:, -1]

    def estimate(self, values: np.ndarray) -> Estimate:
        """The value of the data with the interval of its resamples."""
        own = values[1:]
        low, high = percentiles(own, 0.95, min(int(side.max()) + 1 for side in self.groups))
        tails = ((own <= 0).sum() + 1, (own >= 0).sum() + 1)
        return Estimate(float(values[0]), low, high, min(1.0, 2 * min(tails) / (len(own) + 1)))
