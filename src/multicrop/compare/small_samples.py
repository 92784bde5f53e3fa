"""Paired comparison on few images: an exact interval, and notes on few images and few clusters."""

from functools import lru_cache

import numpy as np
from scipy.special import gammaln

FEW_IMAGES = 50  # below, the bootstrap interval is too narrow: with 10 images it covers in 34 to 82 of 100 studies
FEW_CLUSTERS = 20  # below, no interval over clusters is reliable (Cameron, Gelbach & Miller 2008)
STEP = 0.005  # of the differences that are tried; limits are rounded outwards to it
NUISANCE = 41  # values tried of the probability that the baseline alone is right
LEAST_CHANGED = 6  # images that must change in one direction for p < 0.05 by McNemar's exact test


def exact_interval(rescued: int, lost: int, images: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval for a difference of accuracy on the same images.

    A difference is in the interval unless one of two one-sided tests at level (1 - confidence) / 2 rejects it. The tests are exact and
    unconditional: outcomes are ordered by the score statistic of Tango (1998, Statistics in Medicine 17:891-908), and the p-value is the
    largest over the nuisance probability (Hsueh, Liu & Chen 2001, https://doi.org/10.1111/j.0006-341X.2001.00478.x).

    Args:
        rescued: Number of images that only the method classifies correctly.
        lost: Number of images that only the baseline classifies correctly.
        images: Number of images.
        confidence: Coverage of the interval.

    Returns:
        Lower and upper limit, from -1 to 1.
    """
    limits = _lower_limits(images, confidence)
    return float(limits[rescued, lost]), float(-limits[lost, rescued])


def mean_exact_interval(gains: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """The mean of the exact intervals of runs (runs, images) on few images; None where there are enough images."""
    images = gains.shape[1]
    if images >= FEW_IMAGES:
        return None
    counts = [(int((run > 0).sum()), int((run < 0).sum())) for run in gains]
    low, high = np.mean([exact_interval(*run, images, confidence=confidence) for run in counts], axis=0).tolist()
    return low, high


def remarks(images: int, clusters: int | None) -> list[str]:
    """Sentences for the reader of intervals on few images or few clusters; empty where there are enough of both."""
    said = []
    if images < FEW_IMAGES:
        least = f"at least {LEAST_CHANGED} images ({100 * LEAST_CHANGED / images:.0f} points)" if images >= LEAST_CHANGED else "more images"
        said.append(f"small test set: {images} images; intervals are exact or wider, and a significant difference needs {least}")
    if clusters is not None and clusters < FEW_CLUSTERS:
        said.append(f"only {clusters} clusters: intervals over fewer than {FEW_CLUSTERS} may be too narrow")
    return said


@lru_cache(maxsize=64)
def _lower_limits(images: int, confidence: float) -> np.ndarray:
    """The lower limit of each outcome, by the numbers of rescued and lost images, shape (images + 1, images + 1)."""
    rescued, lost = (side.ravel() for side in np.mgrid[: images + 1, : images + 1])
    rescued, lost = rescued[rescued + lost <= images], lost[rescued + lost <= images]
    counts = np.stack([rescued, lost, images - rescued - lost], 1)
    log_ways = gammaln(images + 1) - gammaln(counts + 1).sum(1)
    limits, open_ = np.full(len(counts), 1.0), np.ones(len(counts), dtype=bool)
    for difference in np.arange(STEP - 1, 1, STEP):
        accepted = open_ & (_p_values(difference, counts, log_ways) > (1 - confidence) / 2)
        limits[accepted] = difference - STEP
        open_ &= ~accepted
    table = np.full((images + 1, images + 1), np.nan)
    table[rescued, lost] = limits
    return table


def _p_values(difference: float, counts: np.ndarray, log_ways: np.ndarray) -> np.ndarray:
    """One-sided p-value of each outcome: the probability of a score at least as high, at its maximum over the nuisance probability."""
    score = -_scores(difference, counts)
    first, last = max(0.0, -difference), (1 - difference) / 2
    lost = first + (last - first) * (1 - np.cos(np.linspace(0, np.pi, NUISANCE))) / 2  # closer at both ends
    chances = np.stack([lost + difference, lost, 1 - difference - 2 * lost])
    probability = np.exp(log_ways[:, None] + counts @ np.log(np.clip(chances, 1e-300, None)))
    order = np.argsort(score)
    last_of_ties = np.searchsorted(score[order], score + 1e-9, side="right") - 1
    return np.cumsum(probability[order], axis=0).max(axis=1)[last_of_ties]


def _scores(difference: float, counts: np.ndarray) -> np.ndarray:
    """Tango's score of each outcome: the standardised distance from a difference, with the other probability at its estimate."""
    (rescued, lost, _), images = counts.T.astype(float), counts[0].sum()
    linear = (2 * images - rescued + lost) * difference - rescued - lost
    root = np.sqrt(np.clip(linear**2 + 8 * images * lost * difference * (1 - difference), 0, None)) - linear  # 0 may round to below
    variance = images * (root / (2 * images) + difference * (1 - difference))
    distance = rescued - lost - images * difference
    return np.divide(distance, np.sqrt(np.clip(variance, 1e-12, None)))
