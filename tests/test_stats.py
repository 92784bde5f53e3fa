"""The paired statistics against SciPy, statsmodels and slow loops, and a simulation of how often the intervals cover."""

import gc
import itertools
import math
import weakref

import numpy as np
import pytest
from refusals import refused
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from multicrop.compare import resampling
from multicrop.compare import statistics as stats


def outcomes(seed, *shape, accuracy=0.6, rescue=0.3, loss=0.1):
    """A baseline and a method that rescues and loses images of it at these rates."""
    rng = np.random.default_rng(seed)
    baseline = rng.random(shape) < accuracy
    change = rng.random(shape)
    return np.where(baseline, change >= loss, change < rescue), baseline


def test_the_test_is_mcnemars_and_the_interval_is_scipys_paired_bootstrap():
    correct, baseline = outcomes(1, 400)
    got = stats.compare(correct, baseline)
    table = [[int((correct & baseline).sum()), got.rescued], [got.lost, int((~correct & ~baseline).sum())]]
    assert got.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (got.rescued, got.lost) == (int((correct & ~baseline).sum()), int((baseline & ~correct).sum()))
    assert got.difference == pytest.approx(correct.mean() - baseline.mean())
    pair = (correct.astype(float), baseline.astype(float))
    interval = scipy_stats.bootstrap(
        pair, lambda x, y: x.mean() - y.mean(), paired=True, vectorized=False, method="percentile", n_resamples=4000, rng=2
    ).confidence_interval
    assert (got.low, got.high) == (pytest.approx(interval.low, abs=0.006), pytest.approx(interval.high, abs=0.006))


def test_no_difference_is_no_evidence_and_a_sure_gain_has_no_width():
    same = np.array([True, False, True] * 20)
    assert stats.compare(same, same) == stats.Comparison(0.0, 0.0, 0.0, 1.0, 0, 0)
    sure = stats.compare(np.ones(60, bool), np.zeros(60, bool))
    assert (sure.low, sure.high, sure.p_value) == (1.0, 1.0, 2 / 2**60)


def test_one_run_is_the_plain_comparison_and_equal_runs_only_add_nothing():
    correct, baseline = outcomes(3, 300)
    assert stats.compare_runs(correct[None], baseline[None]) == stats.compare(correct, baseline)
    many = stats.compare_runs(np.tile(correct, (5, 1)), np.tile(baseline, (5, 1)))
    one = stats.compare(correct, baseline)
    assert many.difference == pytest.approx(one.difference) and (many.rescued, many.lost) == (one.rescued, one.lost)
    assert (many.low, many.high) == (pytest.approx(one.low, abs=0.01), pytest.approx(one.high, abs=0.01))


def test_resampling_runs_and_images_is_what_a_plain_loop_does():
    gains = np.subtract(*outcomes(4, 3, 40), dtype=float)
    rng, loop = np.random.default_rng(0), []
    for _ in range(4000):
        runs, images = rng.integers(3, size=3), rng.integers(40, size=40)
        loop.append(np.mean([[gains[r, i] for i in images] for r in runs]))
    means = resampling.crossed_means(gains, np.random.default_rng(1), stats.RESAMPLES)
    assert means.mean() == pytest.approx(np.mean(loop), abs=0.01) and means.std() == pytest.approx(np.std(loop), rel=0.06)


def test_runs_that_differ_widen_the_interval():
    rng = np.random.default_rng(5)
    baseline = np.zeros((6, 500), bool)
    spread = np.stack([rng.random(500) < p for p in (0.1, 0.5, 0.2, 0.6, 0.1, 0.3)])
    steady = rng.random((6, 500)) < 0.3
    wide, narrow = stats.compare_runs(spread, baseline), stats.compare_runs(steady, baseline)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_the_interval_over_images_covers_the_truth_in_95_of_100_studies():
    truth, hits, studies = 0.4 * 0.3 - 0.6 * 0.1, 0, 600
    for study in range(studies):
        got = stats.compare(*outcomes(study, 200), seed=study, resamples=500)
        hits += got.low <= truth <= got.high
    assert 0.92 <= hits / studies <= 0.975


def test_the_interval_over_runs_and_images_covers_the_truth():
    """Truth: images and runs both shift the chance of a gain; each study draws 8 runs and 150 images anew."""
    hits, studies = 0, 300
    for study in range(studies):
        rng = np.random.default_rng(study)
        chance = 0.3 + 0.15 * rng.uniform(-1, 1, (8, 1)) + 0.1 * rng.uniform(-1, 1, (1, 150))
        got = stats.compare_runs(rng.random((8, 150)) < chance, np.zeros((8, 150), bool), seed=study, resamples=500)
        hits += got.low <= 0.3 <= got.high
    assert 0.90 <= hits / studies <= 0.99


def test_holm_collects_no_garbage():
    class Node:
        pass

    node = Node()
    node.itself, seen = node, weakref.ref(node)
    frozen = gc.get_freeze_count()
    del node
    stats.holm([0.01, 0.2])
    assert seen() is not None and gc.get_freeze_count() <= frozen


def test_p_values_of_the_null_are_uniform_enough_and_holm_is_the_textbooks():
    small = sum(stats.compare(*outcomes(s, 200, accuracy=0.5, rescue=0.2, loss=0.2), resamples=1).p_value < 0.05 for s in range(400))
    assert small / 400 <= 0.065
    p = [0.01, 0.04, 0.03, 0.005]
    ordered, worst, by_hand = sorted(range(4), key=p.__getitem__), 0.0, {}
    for rank, i in enumerate(ordered):
        worst = max(worst, min(1.0, (4 - rank) * p[i]))
        by_hand[i] = worst
    assert stats.holm(p) == pytest.approx([by_hand[i] for i in range(4)]) and stats.holm([]) == []


def test_what_no_test_can_decide_does_not_count_in_the_family():
    same = np.array([True, False, True] * 20)
    found = [stats.compare(*outcomes(s, 60)) for s in range(3)]
    assert stats.holm_family([found[0], stats.compare(same, same), *found[1:]])[1] is None
    expected = stats.holm([c.p_value for c in found])
    assert [p for p in stats.holm_family([*found, stats.compare(same, same)]) if p is not None] == expected
    sure = stats.compare(np.ones(8, bool), np.zeros(8, bool))
    swapped = stats.compare(np.array([True, False] * 9), np.array([False, True] * 9))  # no difference, but every image differs
    assert sure.testable and swapped.testable


def test_vectors_of_different_images_are_refused():
    with refused("the same images", "(3,)", "(4,)"):
        stats.compare(np.ones(3, bool), np.ones(4, bool))
    with refused("the same runs and images"):
        stats.compare_runs(np.ones((2, 3), bool), np.ones((3, 3), bool))
    with refused("the same images"):
        stats.compare(np.ones(0, bool), np.ones(0, bool))
    for shape in ((0, 3), (2, 0)):
        with refused("at least one", str(shape)):
            stats.compare_runs(np.ones(shape, bool), np.ones(shape, bool))
    assert stats.compare_runs(np.ones((1, 1), bool), np.zeros((1, 1), bool)).difference == 1.0


def test_numbers_count_as_correct_where_they_are_not_zero():
    correct, baseline = outcomes(6, 2, 50)
    assert stats.compare(2.0 * correct[0], 2.0 * baseline[0]) == stats.compare(correct[0], baseline[0])
    assert stats.compare_runs(2.0 * correct, 2.0 * baseline) == stats.compare_runs(correct, baseline)


def test_the_interval_has_the_confidence_asked_for():
    assert resampling.percentiles(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    correct, baseline = outcomes(7, 300)
    knobs = {"confidence": 0.5, "seed": 3}
    assert stats.compare_runs(correct[None], baseline[None], **knobs) == stats.compare(correct, baseline, **knobs)


class CountingGenerator(np.random.Generator):
    """Notes how many resamples are drawn at once."""

    def multinomial(self, n, pvals, size=None):
        self.sizes = [*getattr(self, "sizes", []), size]
        return super().multinomial(n, pvals, size)


@pytest.mark.parametrize(("at_once", "sizes"), [(10, [1] * 14), (3 * 40, [3, 3, 3, 3, 1, 1]), (10**6, [7, 7])])
def test_resamples_are_drawn_as_many_at_once_as_fit_in_memory(at_once, sizes, monkeypatch):
    monkeypatch.setattr(resampling, "AT_ONCE", at_once)
    rng = CountingGenerator(np.random.PCG64(0))
    means = resampling.crossed_means(np.ones((3, 40)), rng, 7)
    assert rng.sizes == sizes and means == pytest.approx(np.ones(7))


def test_resamples_at_zero_count_on_both_sides_of_the_p_value():
    """A resample of exactly 0 speaks for neither method, so it counts for both."""
    same = np.array([[True, False, True] * 20] * 2)
    assert stats.compare_runs(same, same) == stats.Comparison(0.0, 0.0, 0.0, 1.0, 0, 0, test=stats.BOOTSTRAP)
    correct, baseline = np.array([[1, 1, 0], [1, 0, 0]], bool), np.array([[0, 1, 0], [1, 0, 0]], bool)
    got = stats.compare_runs(correct, baseline)  # a gain in one run on one image: no resample is below 0
    means = resampling.crossed_means(correct.astype(float) - baseline, np.random.default_rng(0), stats.RESAMPLES)
    zeros = int((means == 0).sum())
    assert zeros > stats.RESAMPLES / 4 and (means >= 0).all()
    assert got.p_value == pytest.approx(2 * (zeros + 1) / (stats.RESAMPLES + 1))
    turned = stats.compare_runs(baseline, correct)
    assert turned.p_value == pytest.approx(got.p_value) and (turned.rescued, turned.lost) == (got.lost, got.rescued)


def clustered(seed, *, clusters=100, images=4, icc=0.4, gain=0.5):
    """Whether a method classifies each image correctly, with an intra-cluster correlation of ``icc`` (beta-binomial), and the clusters."""
    rng, total = np.random.default_rng(seed), 1 / icc - 1
    rate = rng.beta(gain * total, (1 - gain) * total, clusters)
    return (rng.random((clusters, images)) < rate[:, None]).ravel(), np.repeat([f"c{i}" for i in range(clusters)], images).tolist()


def test_the_interval_over_clusters_covers_the_truth_where_that_over_images_does_not():
    hits, blind, studies = 0, 0, 300
    for study in range(studies):
        correct, clusters = clustered(study)
        wide, narrow = (stats.compare(correct, np.zeros_like(correct), clusters=c, seed=study, resamples=500) for c in (clusters, None))
        hits, blind = hits + (wide.low <= 0.5 <= wide.high), blind + (narrow.low <= 0.5 <= narrow.high)
    assert 0.92 <= hits / studies <= 0.98 and blind / studies < 0.88


def test_few_clusters_of_unlike_sizes_are_covered_too():
    """Ten clusters of 2 to 18 images; without the expansion of the percentiles 90 % of these intervals cover the truth."""
    sizes, hits, studies = np.arange(2, 20, 2), 0, 600
    clusters = np.repeat([f"c{i}" for i in range(len(sizes) + 1)], [*sizes, 10]).tolist()
    for study in range(studies):
        rng = np.random.default_rng(study)
        rates = rng.beta(2, 2, len(sizes) + 1)
        correct = rng.random(len(clusters)) < np.repeat(rates, [*sizes, 10])
        got = stats.compare(correct, np.zeros_like(correct), clusters=clusters, seed=study, resamples=500)
        hits += got.low <= 0.5 <= got.high
    assert 0.92 <= hits / studies <= 0.98


def test_the_test_over_clusters_keeps_its_level_and_mcnemars_does_not():
    rejected, blind, studies = 0, 0, 500
    for study in range(studies):
        correct, clusters = clustered(study)
        baseline = ~correct  # each image differs, and neither method is better
        rejected += stats.compare(correct, baseline, clusters=clusters, resamples=1).p_value < 0.05
        blind += stats.compare(correct, baseline, resamples=1).p_value < 0.05
    assert 0.02 <= rejected / studies <= 0.07 and blind / studies > 0.1


def test_the_test_over_clusters_is_the_loop_over_all_swaps_and_mcnemars_for_single_images():
    gains = np.array([3, -1, 0, 2, 2, 1, -2])
    sums = [sum(g * s for g, s in zip(gains, signs, strict=True)) for signs in itertools.product((1, -1), repeat=len(gains))]
    assert resampling.sign_flips(gains) == pytest.approx(np.mean(np.abs(sums) >= abs(gains.sum())))
    correct, baseline = outcomes(1, 4000)
    assert resampling.sign_flips(correct.astype(int) - baseline) == pytest.approx(stats.compare(correct, baseline).p_value, abs=1e-12)
    assert resampling.sign_flips(np.zeros(3)) == 1.0 and resampling.sign_flips(np.full(20, 5)) == pytest.approx(2.0**-19)


def test_clusters_that_say_nothing_change_nothing_and_runs_draw_them_whole():
    correct, baseline = outcomes(2, 2, 60)
    alone, one, unnamed = [f"c{i}" for i in range(60)], ["all"] * 60, [""] * 60
    assert all(stats.compare(correct[0], baseline[0], clusters=c) == stats.compare(correct[0], baseline[0]) for c in (alone, one, unnamed))
    half = stats.compare(correct[0], baseline[0], clusters=["pair", "pair", *[""] * 58])
    assert (half.clusters, half.test) == (59, stats.SIGN_FLIPS)
    tiled = np.repeat(correct, 4, 1), np.repeat(baseline, 4, 1)  # four copies of an image are one cluster
    copies = stats.compare_runs(*tiled, clusters=np.repeat(alone, 4).tolist())
    plain = stats.compare_runs(correct, baseline)
    assert copies.clusters == 60 and copies.difference == pytest.approx(plain.difference)
    assert copies.low <= plain.low < plain.high <= copies.high < plain.high + 0.1
    with refused("the cluster of each image", "59"):
        stats.compare(correct[0], baseline[0], clusters=alone[1:])


@pytest.mark.parametrize(("clusters", "quantile"), [(2, 12.7062), (5, 2.776445), (10, 2.262157), (50, 2.009575)])
def test_the_percentiles_over_clusters_are_expanded_by_students_quantile(clusters, quantile):
    """Hesterberg 2015, section 4.4, with the 97.5 % quantiles of tables of Student's t for one less degree of freedom."""
    tail = math.erfc(quantile * math.sqrt(clusters / (clusters - 1)) / math.sqrt(2)) / 2
    found = resampling.percentiles(np.arange(10**6 + 1.0), 0.95, clusters)
    assert found == pytest.approx((10**6 * tail, 10**6 * (1 - tail)), abs=0.1)


def test_two_clusters_are_enough_to_be_compared():
    correct, baseline = outcomes(8, 20)
    assert stats.compare(correct, baseline, clusters=["a"] * 9 + ["b"] * 11).clusters == 2
    named = resampling.cluster_numbers(["b", "", "a", "b", ""], 5)
    assert len(set(named[[0, 1, 2, 4]].tolist())) == 4 and named[0] == named[3]


def test_a_p_value_over_clusters_stays_between_its_smallest_and_1_where_the_transform_rounds():
    for count in range(40, 200, 4):
        smallest = resampling.sign_flips(np.ones(count))
        assert 2.0 ** (1 - count) <= smallest < 1e-9
        assert 1 - 1e-9 < resampling.sign_flips(np.array([1, -1] * count)) <= 1.0


def test_runs_over_clusters_have_the_expanded_interval_and_one_run_is_the_plain_comparison():
    correct, baseline = outcomes(9, 3, 60, loss=0.4)
    clusters, knobs = [f"c{i % 6}" for i in range(60)], {"seed": 3, "resamples": 90}
    one, plain = (
        stats.compare_runs(correct[:1], baseline[:1], clusters=clusters, **knobs),
        stats.compare(correct[0], baseline[0], clusters=clusters, **knobs),
    )
    assert one == plain != stats.compare(correct[0], baseline[0], clusters=clusters, seed=3)
    assert plain.lost > 0 and plain.difference == pytest.approx(correct[0].mean() - baseline[0].mean())
    many = stats.compare_runs(correct, baseline, clusters=clusters, **knobs)
    gains = (correct.astype(float) - baseline).reshape(3, 10, 6).sum(1)
    means = resampling.crossed_means(gains, np.random.default_rng(3), 90, np.full(6, 10))
    assert (
        (many.low, many.high) == pytest.approx(resampling.percentiles(means, 0.95, 6)) != pytest.approx(resampling.percentiles(means, 0.95))
    )
