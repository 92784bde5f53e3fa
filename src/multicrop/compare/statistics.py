"""Paired comparison of two methods on the same images: difference of accuracy, its bootstrap interval, and an exact test.

One run a method: the interval is the percentile bootstrap over images, the test is McNemar's exact one. Several runs a method (seeds,
stream orders): runs and images are resampled both, and the p-value comes from the same resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
AT_ONCE = 4_000_000  # numbers held while resampling


@dataclass(frozen=True)
class Comparison:
    """Method minus baseline, in accuracy (0-1), over the same images."""

    difference: float
    low: float
    high: float
    p_value: float
    rescued: int
    lost: int

    @property
    def testable(self) -> bool:
        """Whether the two differ on any image; where they do not, no test can tell them apart."""
        return any((self.difference, self.low, self.high))


def compare(correct: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Compare two boolean vectors of correctness over the same images.

    An image changes the difference by -1, 0 or +1, so a bootstrap resample of images is one multinomial draw of how many of each; the
    interval is the percentile interval of these draws. The p-value is McNemar's exact (binomial) test over the images that exactly one
    of the two gets right. Raises ValueError when the vectors differ in length or are empty.
    """
    correct, baseline = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if correct.ndim != 1 or correct.shape != baseline.shape or correct.size == 0:
        raise ValueError(f"a paired comparison needs the same images, got {correct.shape} against {baseline.shape}")
    count = len(correct)
    rescued, lost = int((correct & ~baseline).sum()), int((~correct & baseline).sum())
    drawn = np.random.default_rng(seed).multinomial(count, [rescued / count, lost / count, (count - rescued - lost) / count], RESAMPLES)
    low, high = _percentiles((drawn[:, 0] - drawn[:, 1]) / count, confidence)
    p_value = stats.binomtest(rescued, rescued + lost).pvalue if rescued + lost else 1.0
    return Comparison((rescued - lost) / count, low, high, float(p_value), rescued, lost)


def compare_runs(
    correct: np.ndarray, baseline: np.ndarray, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Compare several runs of a method to as many of its baseline: booleans (runs, images), row r of both made with the same seeds.

    Every run sees the same images, so the two levels are crossed: a resample draws runs, then images once for all of them (the pigeonhole
    bootstrap, Owen 2007, which is never too narrow in the noise that runs and images share, but with few runs cannot know more of the
    runs' spread than these few show). The p-value is twice the smaller share of resamples on either side of zero, so it has a floor of 2 /
    (resamples + 1): a large family of tests wants more of them. `rescued` and `lost`
    are means over runs, rounded. One run is `compare`. Raises ValueError when the arrays differ in shape or are empty.
    """
    correct, baseline = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if correct.ndim != 2 or correct.shape != baseline.shape or correct.size == 0:
        raise ValueError(f"a paired comparison needs the same runs and images, got {correct.shape} against {baseline.shape}")
    if len(correct) == 1:
        return compare(correct[0], baseline[0], confidence=confidence, seed=seed)
    gains = correct.astype(np.float64) - baseline
    means = _crossed_means(gains, np.random.default_rng(seed), resamples)
    low, high = _percentiles(means, confidence)
    below, above = ((means <= 0).sum() + 1) / (resamples + 1), ((means >= 0).sum() + 1) / (resamples + 1)
    rescued, lost = round((gains > 0).sum() / len(gains)), round((gains < 0).sum() / len(gains))
    return Comparison(float(gains.mean()), low, high, float(min(1.0, 2 * min(below, above))), rescued, lost)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values."""
    from statsmodels.stats.multitest import multipletests  # it loads pandas: only who corrects pays for it

    return np.asarray(multipletests(list(p_values), method="holm")[1]).tolist() if len(p_values) else []


def holm_family(comparisons: Sequence[Comparison]) -> list[float | None]:
    """The corrected p-value of each comparison of one family; None for those that are not testable, such as a baseline with itself.

    These do not count in the family (Tarone 1990: a hypothesis whose test cannot reject at any level costs the others nothing).
    """
    corrected = iter(holm([c.p_value for c in comparisons if c.testable]))
    return [next(corrected) if c.testable else None for c in comparisons]


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _crossed_means(gains: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """The mean of `gains` (runs, images) in each resample of runs and images."""
    runs, images = gains.shape
    means = np.empty(resamples)
    step = max(1, AT_ONCE // images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), count)
        of_images = rng.multinomial(images, np.full(images, 1 / images), count)
        means[start : start + count] = np.einsum("bi,bi->b", of_runs @ gains, of_images) / gains.size
    return means
