"""Paired comparison of two methods on the same images: difference of accuracy with its bootstrap interval, and McNemar's exact test."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Comparison:
    """Method minus baseline, in accuracy (0-1), over the same images."""

    difference: float
    low: float
    high: float
    p_value: float
    rescued: int
    lost: int


def compare(correct: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare two boolean vectors of correctness over the same images.

    The interval is SciPy's percentile bootstrap of the paired differences; the p-value is McNemar's exact (binomial) test over the
    images that exactly one of the two gets right. Raises ValueError when the vectors differ in length or are empty.
    """
    correct, baseline = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if correct.shape != baseline.shape or correct.size == 0:
        raise ValueError(f"a paired comparison needs the same images, got {correct.shape} against {baseline.shape}")
    gains = correct.astype(float) - baseline
    rescued, lost = int((gains > 0).sum()), int((gains < 0).sum())
    low = high = gains.mean()
    if rescued + lost and gains.std() > 0:
        interval = stats.bootstrap(
            (gains,),
            np.mean,
            confidence_level=confidence,
            n_resamples=2000,
            method="percentile",
            rng=np.random.default_rng(seed),
            batch=200,
        ).confidence_interval
        low, high = interval.low, interval.high
    p_value = stats.binomtest(rescued, rescued + lost).pvalue if rescued + lost else 1.0
    return Comparison(float(gains.mean()), float(low), float(high), float(p_value), rescued, lost)
