"""Paired comparison of two methods on the same images: difference of accuracy, bootstrap interval, and p-value.

With one run per method, the interval is the percentile bootstrap over images and the test is McNemar's exact test. With several runs per
method (seeds, stream orders), runs and images are both resampled, and the p-value comes from the same resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
AT_ONCE = 4_000_000  # numbers in memory while resampling


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a method minus accuracy of its baseline on the same images.

    Args:
        difference: Difference of accuracy, from -1 to 1.
        low: Lower end of its interval.
        high: Upper end of its interval.
        p_value: Two-sided p-value.
        rescued: Number of images that only the method classifies correctly.
        lost: Number of images that only the baseline classifies correctly.
    """

    difference: float
    low: float
    high: float
    p_value: float
    rescued: int
    lost: int

    @property
    def testable(self) -> bool:
        """Whether the two differ on any image; otherwise no test can reject their equality."""
        return any((self.difference, self.low, self.high))


def compare(correct: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare the correctness of a method with that of a baseline on the same images.

    Each image changes the difference by -1, 0 or +1, so a bootstrap resample of images is one multinomial draw of the three counts; the
    interval is the percentile interval of these draws. The p-value is McNemar's exact (binomial) test on the images that exactly one of
    the two classifies correctly.

    Args:
        correct: Booleans of the method, shape (images,).
        baseline: Booleans of the baseline, shape (images,), in the same order of images.
        confidence: Coverage of the interval.
        seed: Seed of the resamples.

    Returns:
        The comparison.

    Raises:
        ValueError: If the shapes differ or there are no images.
    """
    correct, baseline = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if correct.ndim != 1 or correct.shape != baseline.shape or correct.size == 0:
        raise ValueError(f"a paired comparison needs the same images, at least one; got shapes {correct.shape} and {baseline.shape}")
    count = len(correct)
    rescued, lost = int((correct & ~baseline).sum()), int((~correct & baseline).sum())
    drawn = np.random.default_rng(seed).multinomial(count, [rescued / count, lost / count, (count - rescued - lost) / count], RESAMPLES)
    low, high = _percentiles((drawn[:, 0] - drawn[:, 1]) / count, confidence)
    p_value = stats.binomtest(rescued, rescued + lost).pvalue if rescued + lost else 1.0
    return Comparison((rescued - lost) / count, low, high, float(p_value), rescued, lost)


def compare_runs(
    correct: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Compare several runs of a method with as many runs of its baseline on the same images.

    All runs score the same images, so the two levels are crossed: a resample draws runs, and images once for all of these runs (the
    pigeonhole bootstrap, Owen 2007, https://doi.org/10.1214/07-AOAS122). It is conservative for the noise of runs and images; with few
    runs, their spread is known only from these few. The p-value is twice the smaller share of resamples on either side of zero, so it is
    at least 2 / (resamples + 1); a large family of tests needs more resamples. One run gives the same result as ``compare``.

    Args:
        correct: Booleans of the method, shape (runs, images).
        baseline: Booleans of the baseline, shape (runs, images); row r has the seeds of row r of ``correct``.
        confidence: Coverage of the interval.
        seed: Seed of the resamples.
        resamples: Number of resamples.

    Returns:
        The comparison; ``rescued`` and ``lost`` are means over runs, rounded.

    Raises:
        ValueError: If the shapes differ, or there are no runs or no images.
    """
    correct, baseline = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if correct.ndim != 2 or correct.shape != baseline.shape or correct.size == 0:
        raise ValueError(
            f"a paired comparison needs the same runs and images, at least one; got shapes {correct.shape} and {baseline.shape}"
        )
    if len(correct) == 1:
        return compare(correct[0], baseline[0], confidence=confidence, seed=seed)
    gains = correct.astype(np.float64) - baseline
    means = _crossed_means(gains, np.random.default_rng(seed), resamples)
    low, high = _percentiles(means, confidence)
    below, above = ((means <= 0).sum() + 1) / (resamples + 1), ((means >= 0).sum() + 1) / (resamples + 1)
    rescued, lost = round((gains > 0).sum() / len(gains)), round((gains < 0).sum() / len(gains))
    return Comparison(float(gains.mean()), low, high, float(min(1.0, 2 * min(below, above))), rescued, lost)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct a family of p-values by Holm's step-down method (Holm 1979).

    Args:
        p_values: The p-values of the family.

    Returns:
        The corrected p-values in the same order.
    """
    from statsmodels.stats.multitest import multipletests  # loads pandas, so it is imported on first use

    return np.asarray(multipletests(list(p_values), method="holm")[1]).tolist() if len(p_values) else []


def holm_family(comparisons: Sequence[Comparison]) -> list[float | None]:
    """Correct the p-values of one family of comparisons by Holm's method.

    Comparisons that are not testable, such as a baseline with itself, do not count in the family (Tarone 1990: a hypothesis that its
    test cannot reject at any level needs no correction of the others).

    Args:
        comparisons: The comparisons of the family.

    Returns:
        The corrected p-value of each comparison; None if it is not testable.
    """
    corrected = iter(holm([c.p_value for c in comparisons if c.testable]))
    return [next(corrected) if c.testable else None for c in comparisons]


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _crossed_means(gains: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Mean of ``gains``, shape (runs, images), in each resample of runs and images."""
    runs, images = gains.shape
    means = np.empty(resamples)
    step = max(1, AT_ONCE // images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), count)
        of_images = rng.multinomial(images, np.full(images, 1 / images), count)
        means[start : start + count] = np.einsum("bi,bi->b", of_runs @ gains, of_images) / gains.size
    return means
