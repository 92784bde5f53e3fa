"""The rule of choosing against slow loops, its optimism in a simulation, the criteria without labels, the temperature."""

import math
from dataclasses import replace

import numpy as np
import pytest
from refusals import refused
from scipy.stats import norm

from multicrop.compare.choosing import choose, naive_best
from multicrop.compare.label_free import Unlabelled, agreement, choose_without_labels, mutual_information
from multicrop.compare.temperature import fit_temperature, true_probability


def table(rates, images, seed=0, shared=0.8):
    """Settings with these rates on images whose difficulty they share."""
    rng = np.random.default_rng(seed)
    latent = shared * rng.normal(size=images) + math.sqrt(1 - shared**2) * rng.normal(size=(len(rates), images))
    return latent < norm.ppf(np.asarray(rates))[:, None]


def one_standard_error_rule(correct, groups, errors):
    """The rule, image by image: the first setting whose paired difference to the best is within the error over groups."""
    best = max(range(len(correct)), key=lambda s: (correct[s].mean(), -s))
    names = sorted(set(groups))
    for setting, row in enumerate(correct):
        gaps = [sum(int(correct[best][i]) - int(row[i]) for i in range(len(row)) if groups[i] == name) for name in names]
        sizes = [groups.count(name) for name in names]
        mean, count = sum(gaps) / len(row), len(names)
        error = math.sqrt(sum((g - mean * s) ** 2 for g, s in zip(gaps, sizes, strict=True)) * count / (count - 1)) / len(row)
        if mean <= errors * error + 1e-9:
            return setting
    raise AssertionError("the best is within the error of itself")


@pytest.mark.parametrize("errors", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_candidate_is_the_first_setting_within_the_error_of_the_best(seed, errors):
    correct = table([0.5, 0.6, 0.66, 0.7, 0.68], 60, seed)
    groups = [str(i // (1 + i % 3)) for i in range(60)]
    found = choose(correct, clusters=groups, standard_errors=errors, resamples=20, repeats=2)
    assert found.candidate == one_standard_error_rule(correct, groups, errors)
    alone = choose(correct, standard_errors=errors, resamples=20, repeats=2)
    assert alone.candidate == one_standard_error_rule(correct, [str(i) for i in range(60)], errors)
    assert found.naive == alone.naive == int(correct.mean(1).argmax()) and found.apparent == correct.mean(1).max()


def test_a_sure_gain_is_chosen_and_a_tie_goes_to_the_baseline():
    rates = [0.5, 0.9, 0.9]
    sure = choose(table(rates, 400))
    assert sure.chosen == sure.candidate == 1 and sure.gain.low > 0.3 and sure.shares[1] > 0.5 and sure.shares.sum() == pytest.approx(1)
    same = choose(np.tile(table([0.7], 100), (6, 1)))
    assert same.chosen == same.candidate == 0 and same.gain.value == 0 and same.optimism.value == pytest.approx(0, abs=0.02)


def test_scores_decide_where_all_images_are_right_and_accuracy_is_what_is_told():
    """Three settings classify alike; the second has higher probabilities."""
    correct = np.tile(table([0.9], 100), (3, 1))
    scores = np.stack([np.full(100, 0.5), np.random.default_rng(0).uniform(0.5, 0.7, 100), np.full(100, 0.4)])
    assert choose(correct).chosen == 0
    found = choose(correct, scores=scores)
    assert found.chosen == found.candidate == 1 and found.gain.value == 0 and found.apparent == correct[0].mean() and found.naive == 0


def test_noise_among_many_settings_is_no_gain():
    """240 settings as good as the baseline: the best looks better, and the baseline is kept in most draws."""
    kept = [choose(table([0.7] * 240, 160, seed), resamples=20, repeats=5).chosen == 0 for seed in range(20)]
    assert sum(kept) >= 16


def test_an_image_is_scored_by_settings_that_were_picked_without_its_cluster():
    """One setting per cluster is right there alone: without the cluster, no pick can be right on it."""
    groups = [str(i // 10) for i in range(60)]
    correct = np.zeros((7, 60), dtype=bool)
    for cluster in range(6):
        correct[1 + cluster, cluster * 10 : (cluster + 1) * 10] = True
    found = choose(correct, clusters=groups, standard_errors=0.0, folds=6, repeats=3, resamples=50)
    assert found.apparent == pytest.approx(1 / 6) and found.gain.value == 0 and found.chosen == 0


def test_the_bootstrap_is_a_loop():
    correct = table([0.5, 0.6, 0.7, 0.65], 40, seed=3)
    found, rng, loop = naive_best(correct, resamples=300, seed=4), np.random.default_rng(4), []
    for counts in rng.multinomial(40, np.full(40, 1 / 40), 300):
        drawn = [i for i in range(40) for _ in range(counts[i])]
        best = max(range(4), key=lambda s: (sum(correct[s][i] for i in drawn), -s))
        loop.append(np.mean([correct[best][i] for i in range(40) if counts[i] == 0]))
    assert found.value == pytest.approx(np.mean(loop))
    assert (found.low, found.high) == tuple(pytest.approx(value) for value in np.percentile(loop, [2.5, 97.5]))


def test_the_optimism_of_the_naive_best_is_estimated_within_its_interval_of_the_truth():
    """200 repetitions of 60 settings on 200 images: what the best of them loses on other images is known from its rate."""
    rates = np.concatenate([[0.7], np.random.default_rng(0).uniform(0.6, 0.74, 59)])
    lost, estimated, covered = [], [], []
    for seed in range(200):
        correct = table(rates, 200, seed)
        accuracy, found = correct.mean(1), naive_best(correct, resamples=200, seed=seed)
        truth = rates[accuracy.argmax()]
        lost.append(accuracy.max() - truth)
        estimated.append(accuracy.max() - found.value)
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.95
    assert np.mean(lost) <= np.mean(estimated) <= np.mean(lost) + 0.015  # pessimistic: a resample picks on fewer different images
    assert np.mean(lost) > 0.02


def test_a_choice_refuses_what_is_no_table():
    for wrong in (np.ones(5, bool), np.ones((0, 5), bool), np.ones((3, 1), bool)):
        with refused("one setting and two images"):
            choose(wrong)
    with refused("no resample of 2 clusters leaves one out", "more labelled images"):
        naive_best(np.ones((2, 2), bool), resamples=1, seed=0)


def test_mutual_information_is_high_where_predictions_are_sure_and_cover_the_classes():
    sure, flat, one = np.eye(4), np.full((4, 4), 0.25), np.eye(4)[[0, 0, 0, 0]]
    assert [mutual_information(p) for p in (sure, flat, one)] == pytest.approx([math.log(4), 0, 0], abs=1e-9)
    p = np.array([[0.7, 0.3], [0.2, 0.8]])
    entropy = lambda row: -sum(x * math.log(x) for x in row)  # noqa: E731
    assert mutual_information(p) == pytest.approx(entropy([0.45, 0.55]) - (entropy(p[0]) + entropy(p[1])) / 2)


def test_without_labels_each_criterion_chooses_by_its_own_values():
    predictions = np.array([[0, 1, 2, 3], [0, 1, 2, 0], [3, 2, 1, 0], [0, 0, 2, 0]])
    known = Unlabelled(
        predictions,
        information=np.array([0.1, 0.2, 0.9, 0.3]),
        consistency=np.array([1.0, 0.6, 0.5, 0.7]),
        gap=np.array([0.0, 0.2, 0.6, 0.4]),
        local=np.array([False, True, True, True]),
    )
    chosen = lambda criterion, known=known, gate=0.5: choose_without_labels(criterion, known, gate=gate)  # noqa: E731
    assert [chosen(name) for name in ("mutual_information", "gate", "agreement", "consistency")] == [2, 3, 1, 3]
    assert [chosen("gate", gate=g) for g in (0.1, 0.3, 0.6)] == [0, 1, 2]
    assert chosen("consistency", replace(known, consistency=known.consistency / 2)) == 0
    assert chosen("agreement", replace(known, local=np.zeros(4, bool))) == 0 and agreement(predictions[0], predictions[1]) == 0.75
    with refused("task.criterion is one of gate, mutual_information, agreement, consistency", "luck"):
        chosen("luck")


@pytest.mark.parametrize("truth", [0.3, 1.0, 4.0])
def test_the_temperature_of_logits_that_were_scaled_is_found_again(truth):
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(20_000, 5))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) < rng.random((20_000, 1))).sum(1)
    assert fit_temperature(truth * logits, labels) == pytest.approx(truth, rel=0.03)
    at = logits / (fit_temperature(truth * logits, labels) / truth)
    expected = np.exp(at)[np.arange(20_000), labels] / np.exp(at).sum(1)
    assert np.allclose(true_probability(truth * logits, labels), expected)
    assert fit_temperature(10 * np.eye(3), np.arange(3)) < 0.1  # all are right: as sure as allowed
