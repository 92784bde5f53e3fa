"""The exact interval of few images: its coverage by enumeration of all outcomes, its symmetry, and what is said of few images."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from multicrop.compare import statistics as stats
from multicrop.compare.small_samples import FEW_CLUSTERS, FEW_IMAGES, exact_interval, remarks

TRUTHS = [(rescue, loss) for rescue in (0.02, 0.1, 0.25, 0.4, 0.6) for loss in (0.0, 0.05, 0.15, 0.38)]


def pairs(rescued, lost, images):
    """Correctness of a method and a baseline with these numbers of changed images."""
    baseline = np.arange(images) >= rescued
    return np.where(np.arange(images) < rescued + lost, ~baseline, baseline), baseline


def coverage(images, rescue, loss, interval):
    """The probability that the interval holds the true difference, summed over all outcomes."""
    total = 0.0
    for rescued in range(images + 1):
        for lost in range(images + 1 - rescued):
            low, high = interval(rescued, lost, images)
            chance = scipy_stats.multinomial.pmf([rescued, lost, images - rescued - lost], images, [rescue, loss, 1 - rescue - loss])
            total += chance * (low - 1e-9 <= rescue - loss <= high + 1e-9)
    return total


@pytest.mark.parametrize("images", [4, 10, 25])
def test_the_interval_covers_at_least_95_of_100_studies_whatever_the_truth(images):
    assert min(coverage(images, *truth, exact_interval) for truth in TRUTHS) >= 0.95


def test_the_bootstrap_would_not_cover_which_is_why_there_is_an_exact_interval():
    def bootstrap(rescued, lost, images):
        shares = [rescued / images, lost / images, 1 - (rescued + lost) / images]
        drawn = np.random.default_rng(0).multinomial(images, shares, stats.RESAMPLES)
        return stats.percentiles((drawn[:, 0] - drawn[:, 1]) / images, 0.95)

    assert coverage(10, 0.1, 0.0, bootstrap) < 0.7 < 0.95 <= coverage(10, 0.1, 0.0, exact_interval)


def test_exchanging_method_and_baseline_turns_the_interval_and_certainty_ends_at_one():
    for rescued, lost in ((0, 0), (3, 1), (7, 0), (2, 6)):
        low, high = exact_interval(rescued, lost, 12)
        assert exact_interval(lost, rescued, 12) == (-high, -low) and low <= (rescued - lost) / 12 <= high
    low, high = exact_interval(12, 0, 12)  # at the limit all images are rescued with probability 0.025: ((1 + low) / 2)^12
    assert high == 1.0 and 0 <= 2 * 0.025 ** (1 / 12) - 1 - low <= 0.005
    narrow = exact_interval(3, 1, 12, confidence=0.5)
    assert exact_interval(3, 1, 12)[0] < narrow[0] < narrow[1] < exact_interval(3, 1, 12)[1]


def test_a_comparison_is_exact_below_fifty_images_and_a_bootstrap_from_there():
    few, many = (stats.compare(*pairs(5, 1, images)) for images in (FEW_IMAGES - 1, FEW_IMAGES))
    assert (few.low, few.high) == exact_interval(5, 1, 49) and (many.low, many.high) != exact_interval(5, 1, 50)
    none = stats.compare(*pairs(0, 0, 20))
    assert none.low < 0 < none.high and none.p_value == 1 and not none.testable


def test_runs_have_the_exact_interval_below_fifty_images_and_the_bootstrap_from_there():
    few, many = (stats.compare_runs(*(np.stack([side] * 2) for side in pairs(5, 1, images))) for images in (FEW_IMAGES - 1, FEW_IMAGES))
    low, high = exact_interval(5, 1, FEW_IMAGES)
    assert (few.low, few.high) == exact_interval(5, 1, FEW_IMAGES - 1) and low < many.low < many.high < high


def test_runs_and_clusters_on_few_images_are_at_least_as_wide_as_the_exact_interval():
    correct, baseline = pairs(5, 1, 20)
    other, _ = pairs(4, 2, 20)
    means = np.mean([exact_interval(5, 1, 20), exact_interval(4, 2, 20)], axis=0)
    several = stats.compare_runs(np.stack([correct, other]), np.stack([baseline, pairs(4, 2, 20)[1]]))
    assert several.low <= means[0] + 1e-12 and several.high >= means[1] - 1e-12
    over = stats.compare(correct, baseline, clusters=[f"c{i // 2}" for i in range(20)])
    low, high = exact_interval(5, 1, 20)
    assert over.clusters == 10 and over.low <= low and over.high >= high
    still = stats.compare(baseline, baseline, clusters=[f"c{i // 2}" for i in range(20)])  # no cluster changes
    assert (still.low, still.high) == exact_interval(0, 0, 20) and not still.testable


def test_few_images_and_few_clusters_are_named_and_enough_of_both_are_not():
    assert remarks(FEW_IMAGES, FEW_CLUSTERS) == remarks(FEW_IMAGES, None) == []
    (images,) = remarks(30, None)
    assert images.startswith("small test set: 30 images") and "at least 6 images (20 points)" in images
    assert "needs more images" in remarks(5, None)[0]
    (clusters,) = remarks(400, FEW_CLUSTERS - 1)
    assert clusters.startswith("only 19 clusters")
    assert stats.compare(*pairs(6, 0, 30)).p_value < 0.05 < stats.compare(*pairs(5, 0, 30)).p_value
