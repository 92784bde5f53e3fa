"""Paired comparison of large runs part by part: sums that merge exactly, so that neither predictions nor images are in memory at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import exp, factorial
from operator import add

import numpy as np
import pyarrow as pa
import xxhash

from multicrop.compare.resampling import AT_ONCE, percentiles
from multicrop.compare.statistics import BOOTSTRAP, Comparison, compare_counts
from multicrop.record import PartFolder, RecordError
from multicrop.record.predictions import PREDICTION, correct_in

RESAMPLES = 400  # with Poisson weights, which are drawn for each cluster and resample
_POISSON = np.cumsum([exp(-1) / factorial(count) for count in range(20)])  # distribution of a Poisson variable of mean 1
_STEPS = (_POISSON[_POISSON < 1] * 2.0**53).astype(np.uint64)
_GOLDEN, _FIRST, _SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def poisson_weights(keys: np.ndarray, resamples: int) -> np.ndarray:
    """Bootstrap weights that depend on nothing but the key and the number of the resample, so that sums over parts of the data merge.

    The weights are Poisson variables of mean 1 (Hanley & MacGibbon 2006; Chamandy et al. 2012, "Estimating uncertainty for massive data
    streams"), drawn by the generator SplitMix64 (Steele, Lea & Flood 2014) that the key starts.

    Args:
        keys: 64-bit hashes, shape (keys,).
        resamples: Number of resamples.

    Returns:
        Whole numbers, shape (keys, resamples).
    """
    with np.errstate(over="ignore"):
        state = keys[:, None] + _GOLDEN * np.arange(1, resamples + 1, dtype=np.uint64)
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
        drawn = (state ^ (state >> np.uint64(31))) >> np.uint64(11)
    return np.searchsorted(_STEPS, drawn.ravel(), side="right").reshape(drawn.shape)


@dataclass(frozen=True)
class ClusterSums:
    """Sums over clusters, an image in none being a cluster of its own.

    Args:
        gains: The weighted sum of differences, shape (resamples,).
        sizes: The weighted number of images, shape (resamples,).
        keys: Hashes of the clusters, sorted.
    """

    gains: np.ndarray
    sizes: np.ndarray
    keys: np.ndarray

    @classmethod
    def of(cls, gain: np.ndarray, names: Sequence[str], *, seed: int, resamples: int) -> "ClusterSums":
        """The sums of images with these differences, shape (images,), and clusters; weights are drawn by the cluster, seed and resample."""
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(name.encode(), seed) for name in names), np.uint64, len(names))
        keys, place = np.unique(hashes, return_inverse=True)
        total, count = np.bincount(place, gain, len(keys)).astype(np.int64), np.bincount(place, minlength=len(keys))
        gains, sizes, step = np.zeros(resamples, np.int64), np.zeros(resamples, np.int64), max(1, AT_ONCE // resamples)
        for first in range(0, len(keys), step):
            some = slice(first, first + step)
            weights = poisson_weights(keys[some], resamples)
            gains, sizes = gains + total[some] @ weights, sizes + count[some] @ weights
        return cls(gains, sizes, keys)

    def __add__(self, other: "ClusterSums") -> "ClusterSums":
        return ClusterSums(self.gains + other.gains, self.sizes + other.sizes, np.union1d(self.keys, other.keys))


@dataclass(frozen=True)
class PairSums:
    """Sums over images of a method and its baseline.

    Args:
        both: Images that both classify correctly.
        rescued: Images that only the method classifies correctly.
        lost: Images that only the baseline classifies correctly.
        neither: Images that neither classifies correctly.
        over: Sums over clusters; None: images are independent.
    """

    both: int
    rescued: int
    lost: int
    neither: int
    over: ClusterSums | None = None

    @classmethod
    def of(
        cls, right: np.ndarray, base: np.ndarray, names: Sequence[str] | None = None, *, seed: int = 0, resamples: int = RESAMPLES
    ) -> "PairSums":
        """The sums of some images.

        Args:
            right: Whether the method is right, shape (images,).
            base: Whether the baseline is right, shape (images,).
            names: The cluster of each image; None: images are independent.
            seed: Seed of the weights.
            resamples: Number of resamples of clusters.
        """
        counts = [int(value.sum()) for value in (right & base, right & ~base, ~right & base, ~right & ~base)]
        gain = right.astype(float) - base
        return cls(*counts, over=None if names is None else ClusterSums.of(gain, names, seed=seed, resamples=resamples))

    def __add__(self, other: "PairSums") -> "PairSums":
        over = None if self.over is None or other.over is None else self.over + other.over
        return PairSums(self.both + other.both, self.rescued + other.rescued, self.lost + other.lost, self.neither + other.neither, over)

    def comparison(self, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
        """The comparison: as ``compare`` over images, or with a bootstrap of whole clusters by Poisson weights."""
        images = self.both + self.rescued + self.lost + self.neither
        if self.over is None or not 1 < len(self.over.keys) < images:
            return compare_counts(self.rescued, self.lost, images, confidence=confidence, seed=seed)
        clusters = len(self.over.keys)
        means = self.over.gains / np.maximum(self.over.sizes, 1)  # of each resample
        low, high = percentiles(means, confidence, clusters)
        one_sided = (min((means <= 0).sum(), (means >= 0).sum()) + 1) / (len(means) + 1)
        p_value = float(min(1.0, 2 * one_sided))
        difference = (self.rescued - self.lost) / images
        return Comparison(difference, low, high, p_value, self.rescued, self.lost, clusters=clusters, test=BOOTSTRAP)


def compare_parts(
    method: PartFolder,
    baseline: PartFolder,
    *,
    row: str = "final",
    baseline_row: str = "final",
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare a row of a large run with a row of another, or of the same, on the same images.

    Args:
        method: The parts of the method's run.
        baseline: The parts of the baseline's run.
        row: The row of the method.
        baseline_row: The row of the baseline.
        confidence: Coverage of the interval.
        seed: Seed of the resamples.
        resamples: Number of resamples of clusters, where images have clusters; else those of ``compare``.

    Returns:
        The comparison; over clusters, interval and p-value are those of the bootstrap with Poisson weights.

    Raises:
        RecordError: If the runs do not score the same images in the same parts, or a part is damaged.
    """
    clustered = _clustered(method)
    sums = (
        PairSums.of(
            correct_in(one, row), correct_in(other, baseline_row), _names(one) if clustered else None, seed=seed, resamples=resamples
        )
        for one, other in _pairs(method, baseline, row, baseline_row)
    )
    return reduce(add, sums).comparison(confidence=confidence, seed=seed)


def _pairs(method: PartFolder, baseline: PartFolder, row: str, baseline_row: str) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The same part of both runs, part after part."""
    known = ("image_id", "label", "cluster")
    if (method.images, method.size) != (baseline.images, baseline.size):
        raise RecordError(
            f"{method.path} has {method.images} images in parts of {method.size}, {baseline.path} has {baseline.images} in parts of "
            f"{baseline.size}: score the same images with the same trainer.shard_images, or compare without --parts"
        )
    columns = (method.tables(*known, f"{row}{PREDICTION}"), baseline.tables(*known, f"{baseline_row}{PREDICTION}"))
    for number, (one, other) in enumerate(zip(*columns, strict=True)):
        if not one["image_id"].equals(other["image_id"]) or not one["label"].equals(other["label"]):
            raise RecordError(f"part {number} of {method.path} and of {baseline.path} hold other images or labels: score the same data")
        yield one, other


def _names(table: pa.Table) -> list[str]:
    """The cluster of each image; one in none is a cluster of its own."""
    pairs = zip(table["cluster"].to_pylist(), table["image_id"].to_pylist(), strict=True)
    return [f"cluster {name}" if name else f"image {image_id}" for name, image_id in pairs]


def _clustered(parts: PartFolder) -> bool:
    """Whether any image is in a cluster."""
    return any(any(table["cluster"].unique().to_pylist()) for table in parts.tables("cluster"))
