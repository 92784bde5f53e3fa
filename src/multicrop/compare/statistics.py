"""Paired comparison of two methods on the same images: difference of accuracy, bootstrap interval, and p-value.

With one run per method, the interval is the percentile bootstrap over images (with fewer than 50 images, an exact interval) and the test
is McNemar's exact test. With several runs per method (seeds, stream orders), runs and images are both resampled, and the p-value comes
from the same resamples. Where images come in clusters (frames of a video, images of a patient), clusters take the place of images in
resampling and test.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from multicrop.compare.resampling import cluster_means, cluster_numbers, crossed_means, percentiles, sign_flips
from multicrop.compare.small_samples import FEW_IMAGES, exact_interval, mean_exact_interval

RESAMPLES = 2000
MCNEMAR, SIGN_FLIPS, BOOTSTRAP = "McNemar's exact test", "exact sign-flip test over clusters", "bootstrap"


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
        clusters: Number of clusters that interval and test are over; None: they are over images.
        test: Name of the test behind the p-value.
    """

    difference: float
    low: float
    high: float
    p_value: float
    rescued: int
    lost: int
    clusters: int | None = None
    test: str = MCNEMAR

    @property
    def testable(self) -> bool:
        """Whether the two differ on any image; otherwise no test can reject their equality."""
        return any((self.difference, self.rescued, self.lost)) or (self.test == BOOTSTRAP and self.p_value < 1)


def compare(
    correct: np.ndarray,
    baseline: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare the correctness of a method with that of a baseline on the same images.

    Each image changes the difference by -1, 0 or +1, so a bootstrap resample of images is one multinomial draw of the three counts; the
    interval is the percentile interval of these draws; with fewer than 50 images it is the exact interval of ``exact_interval``. The
    p-value is McNemar's exact (binomial) test on the images that exactly one of the two classifies correctly.

    With clusters, a resample draws whole clusters (the cluster bootstrap: Davison & Hinkley 1997, section 3.8; Field & Welsh 2007,
    https://doi.org/10.1111/j.1467-9868.2007.00593.x; Cameron, Gelbach & Miller 2008). Images are not resampled again within a cluster:
    that would count the variance within clusters twice. The percentiles are those of the expanded percentile interval (Hesterberg 2015,
    https://doi.org/10.1080/00031305.2015.1089789), which corrects the narrowness of the bootstrap with few clusters. The p-value is that
    of the exact test which swaps method and baseline in whole clusters, each with probability 1/2. With one image per cluster it is
    McNemar's exact test. Where all images are in one cluster, interval and test are over images and hold for this cluster alone. With
    fewer than 50 images the interval is widened to the exact one, which a resample of clusters without a change would miss.

    Args:
        correct: Booleans of the method, shape (images,).
        baseline: Booleans of the baseline, shape (images,), in the same order of images.
        clusters: Cluster per image, ``""`` for an image that is in none; None: images are independent.
        confidence: Coverage of the interval.
        seed: Seed of the resamples.
        resamples: Number of resamples.

    Returns:
        The comparison.

    Raises:
        ValueError: If the shapes differ or there are no images.
    """
    correct, baseline = np.asarray(correct, dtype=bool), np.asarray(baseline, dtype=bool)
    if correct.ndim != 1 or correct.shape != baseline.shape or correct.size == 0:
        raise ValueError(f"a paired comparison needs the same images, at least one; got shapes {correct.shape} and {baseline.shape}")
    count, groups = len(correct), cluster_numbers(clusters, len(correct))
    rescued, lost = int((correct & ~baseline).sum()), int((~correct & baseline).sum())
    rng = np.random.default_rng(seed)
    exact = exact_interval(rescued, lost, count, confidence=confidence) if count < FEW_IMAGES else None
    if groups is None:
        return compare_counts(rescued, lost, count, confidence=confidence, seed=seed, resamples=resamples)
    gains, sizes = np.bincount(groups, correct.astype(float) - baseline), np.bincount(groups)
    low, high = _joined(percentiles(cluster_means(gains, sizes, rng, resamples), confidence, len(sizes)), exact)
    return Comparison((rescued - lost) / count, low, high, sign_flips(gains), rescued, lost, len(sizes), SIGN_FLIPS)


def compare_counts(
    rescued: int, lost: int, images: int, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Compare a method with a baseline by counts, which are all that ``compare`` reads of images that are independent.

    Args:
        rescued: Images that only the method classifies correctly.
        lost: Images that only the baseline classifies correctly.
        images: All images.
        confidence: Coverage of the interval.
        seed: Seed of the resamples.
        resamples: Number of resamples.

    Returns:
        What ``compare`` returns for such images.
    """
    exact = exact_interval(rescued, lost, images, confidence=confidence) if images < FEW_IMAGES else None
    shares = [rescued / images, lost / images, (images - rescued - lost) / images]
    drawn = np.random.default_rng(seed).multinomial(images, shares, resamples)
    low, high = exact or percentiles((drawn[:, 0] - drawn[:, 1]) / images, confidence)
    p_value = min(1.0, 2 * float(bdtr(min(rescued, lost), rescued + lost, 0.5)))
    return Comparison((rescued - lost) / images, low, high, float(p_value), rescued, lost)


def compare_runs(
    correct: np.ndarray,
    baseline: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare several runs of a method with as many runs of its baseline on the same images.

    All runs score the same images, so the two levels are crossed: a resample draws runs, and images once for all of these runs (the
    pigeonhole bootstrap, Owen 2007, https://doi.org/10.1214/07-AOAS122). It is conservative for the noise of runs and images; with few
    runs, their spread is known only from these few. With clusters, whole clusters are drawn in place of images, as in ``compare``. The
    p-value is twice the smaller share of resamples on either side of zero, so it is at least 2 / (resamples + 1); a large family of tests
    needs more resamples. With fewer than 50 images the interval is widened to the mean of the exact intervals of the runs. One run gives
    the same result as ``compare``.

    Args:
        correct: Booleans of the method, shape (runs, images).
        baseline: Booleans of the baseline, shape (runs, images); row r has the seeds of row r of ``correct``.
        clusters: Cluster per image, ``""`` for an image that is in none; None: images are independent.
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
        return compare(correct[0], baseline[0], clusters=clusters, confidence=confidence, seed=seed, resamples=resamples)
    gains, groups = correct.astype(np.float64) - baseline, cluster_numbers(clusters, correct.shape[1])
    of_groups = gains if groups is None else np.stack([np.bincount(groups, row) for row in gains])
    sizes, count = (None, None) if groups is None else (np.bincount(groups), len(of_groups[0]))
    means = crossed_means(of_groups, np.random.default_rng(seed), resamples, sizes)
    low, high = _joined(percentiles(means, confidence, count), mean_exact_interval(gains, confidence))
    below, above = ((means <= 0).sum() + 1) / (resamples + 1), ((means >= 0).sum() + 1) / (resamples + 1)
    rescued, lost = round((gains > 0).sum() / len(gains)), round((gains < 0).sum() / len(gains))
    return Comparison(float(gains.mean()), low, high, float(min(1.0, 2 * min(below, above))), rescued, lost, count, BOOTSTRAP)


def _joined(interval: tuple[float, float], exact: tuple[float, float] | None) -> tuple[float, float]:
    """The interval, widened to an exact one where there is one."""
    return interval if exact is None else (min(interval[0], exact[0]), max(interval[1], exact[1]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct a family of p-values by Holm's step-down method (Holm 1979).

    Args:
        p_values: The p-values of the family.

    Returns:
        The corrected p-values in the same order.
    """
    from statsmodels.stats.multitest import multipletests  # loads pandas, so it is imported on first use

    if not len(p_values):
        return []
    gc.freeze()  # multipletests calls gc.collect(), a quarter of a second per family in a process that has loaded torch
    try:
        return np.asarray(multipletests(list(p_values), method="holm")[1]).tolist()
    finally:
        gc.unfreeze()


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
