"""Slow oracles: plain loops written from the formulas, and independent libraries."""

import math
import warnings

import numpy as np
import ot
import pytest
import torch
from conftest import random_text, unit
from scipy.optimize import linprog

from multicrop import aggregators, transport
from multicrop.methods.tda import Tda
from multicrop.stats import compare

KNOBS = {"view_set": "crops", "text_set": "descriptions"}


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_mean_feature_is_a_loop(generator):
    text, views = random_text(generator), unit(3, 5, 16, generator=generator)
    logits = aggregators.mean_feature(views, text, 7.0, **KNOBS)
    for b in range(3):
        image = sum(views[b, k] for k in range(1, 5))
        for c in range(5):
            prompts = sum(text.features[c, m] for m in range(1, len(text.prompts[c])))
            assert float(logits[b, c]) == pytest.approx(7 * cosine(image, prompts), abs=1e-5)


@pytest.mark.parametrize("each", ["prompt", "view", "both"])
def test_max_is_a_loop(each, generator):
    text, views = random_text(generator), unit(3, 5, 16, generator=generator)
    logits = aggregators.max(views, text, 7.0, each=each, **KNOBS)
    for b in range(3):
        for c in range(5):
            table = [[cosine(views[b, k], text.features[c, m]) for m in range(1, len(text.prompts[c]))] for k in range(1, 5)]
            by_view = np.mean([max(row) for row in table])
            by_prompt = np.mean([max(column) for column in zip(*table, strict=True)])
            expected = {"prompt": by_prompt, "view": by_view, "both": (by_prompt + by_view) / 2}[each]
            assert float(logits[b, c]) == pytest.approx(7 * expected, abs=1e-5)


def transport_logits(views, text, **knobs):
    settings = {"solver": "sinkhorn", "epsilon": 0.05, "tolerance": 1e-6, "max_iterations": 20000, **KNOBS, **knobs}
    return aggregators.optimal_transport(views, text, 1.0, **settings)


def test_exact_transport_is_linear_programming(generator):
    text, views = random_text(generator, classes=3), unit(2, 5, 16, generator=generator)
    logits = transport_logits(views, text, solver="exact")
    for b in range(2):
        for c in range(3):
            cost = 1 - (views[b, 1:] @ text.features[c, 1 : len(text.prompts[c])].T).double().numpy()
            k, m = cost.shape
            rows = np.kron(np.eye(k), np.ones(m)), np.kron(np.ones(k), np.eye(m))
            plan = linprog(cost.ravel(), A_eq=np.vstack(rows), b_eq=np.r_[np.full(k, 1 / k), np.full(m, 1 / m)])
            assert float(logits[b, c]) == pytest.approx(1 - plan.fun, abs=1e-5)


@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_sinkhorn_is_the_float64_oracle_of_pot(epsilon, generator):
    text, views = random_text(generator, classes=3), unit(2, 6, 16, generator=generator)
    logits = transport_logits(views, text, epsilon=epsilon)
    for b in range(2):
        for c in range(3):
            cost = 1 - (views[b, 1:] @ text.features[c, 1 : len(text.prompts[c])].T).double().numpy()
            k, m = cost.shape
            marginals = np.full(k, 1 / k), np.full(m, 1 / m)
            plan = ot.sinkhorn(*marginals, cost, epsilon, method="sinkhorn_log", numItermax=100000, stopThr=1e-12)
            assert float(logits[b, c]) == pytest.approx(1 - (plan * cost).sum(), abs=1e-5)


def test_small_epsilon_approaches_exact_and_large_the_double_mean(generator):
    text, views = random_text(generator), unit(4, 6, 16, generator=generator)
    exact = transport_logits(views, text, solver="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        near = transport_logits(views, text, epsilon=2e-3, tolerance=1e-5)
    torch.testing.assert_close(near, exact, atol=2e-3, rtol=0)
    scores = torch.einsum("bkd,cmd->bckm", views[:, 1:], text.features[:, 1:])
    weight = text.mask[:, 1:].float() / text.mask[:, 1:].sum(1, keepdim=True)
    double_mean = (scores.mean(2) * weight).sum(2)
    torch.testing.assert_close(transport_logits(views, text, epsilon=500.0), double_mean, atol=3e-4, rtol=0)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_duplicating_every_crop_changes_nothing(solver, generator):
    text, views = random_text(generator), unit(3, 5, 16, generator=generator)
    doubled = torch.cat([views, views[:, 1:]], 1)
    torch.testing.assert_close(
        transport_logits(doubled, text, solver=solver), transport_logits(views, text, solver=solver), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_plans_keep_their_marginals(solver, generator):
    cost = 1 - torch.rand(2, 3, 5, 4, generator=generator)
    a = torch.rand(2, 3, 5, generator=generator)
    b = torch.rand(2, 3, 4, generator=generator) * torch.tensor([1.0, 1, 1, 0])
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    plan = transport.solve(cost, a, b, solver=solver, epsilon=0.05, tolerance=1e-6, max_iterations=5000)
    torch.testing.assert_close(plan.sum(3), a, atol=1e-5, rtol=0)
    torch.testing.assert_close(plan.sum(2), b, atol=1e-5, rtol=0)
    assert (plan[..., 3] == 0).all()


def test_a_solver_that_has_not_converged_names_the_knob(generator):
    text, views = random_text(generator), unit(3, 9, 16, generator=generator)
    with pytest.warns(UserWarning, match=r"aggregator\.max_iterations"):
        transport_logits(views, text, epsilon=1e-3, max_iterations=3)


def test_gradients_flow_through_the_similarities_alone(generator):
    text, views = random_text(generator), unit(2, 5, 16, generator=generator).requires_grad_()
    transport_logits(views, text).sum().backward()
    scores, plan, _ = aggregators.transport_plan(
        views, text, solver="sinkhorn", epsilon=0.05, tolerance=1e-6, max_iterations=20000, **KNOBS
    )
    assert scores.requires_grad and not plan.requires_grad
    expected = torch.einsum("bckm,cmd->bkd", plan, text.features[:, 1:])
    torch.testing.assert_close(views.grad[:, 1:], expected, atol=1e-4, rtol=0)
    assert (views.grad[:, 0] == 0).all()


def insert(queue, size, item):
    entropies = [entry[0] for entry in queue]
    if len(queue) < size:
        queue.append(item)
    elif item[0] < max(entropies):
        del queue[entropies.index(max(entropies))]
        queue.append(item)


def tda_oracle(views, logits, positive, negative):
    """The rule in plain lists: insert, then read."""
    n_classes, caches, out = logits.shape[1], {"p": {}, "n": {}}, []
    for view, text in zip(views, logits, strict=True):
        key = view.mean(0) / view.mean(0).norm()
        p = text.softmax(0)
        entropy = float(-(p * p.log()).sum())
        label = int(p.argmax())
        mask = [(0.03 < float(x) < 1) for x in p]

        insert(caches["p"].setdefault(label, []), positive["size"], (entropy, key))
        if negative["entropy_low"] < entropy / math.log(n_classes) < negative["entropy_high"]:
            insert(caches["n"].setdefault(label, []), negative["size"], (entropy, key, mask))
        result = [float(x) for x in text]
        for c, queue in caches["p"].items():
            result[c] += sum(positive["alpha"] * math.exp(-positive["beta"] * (1 - cosine(key, entry[1]))) for entry in queue)
        for queue in caches["n"].values():
            for _, other, counts in queue:
                for c in range(n_classes):
                    result[c] -= counts[c] * negative["alpha"] * math.exp(-negative["beta"] * (1 - cosine(key, other)))
        out.append(result)
    return torch.tensor(out), caches


def test_tda_is_its_rule_in_plain_loops(generator):
    views, logits = unit(60, 3, 8, generator=generator), 2 * torch.randn(60, 4, generator=generator)
    positive = {"size": 3, "alpha": 2.0, "beta": 5.0}
    negative = {"size": 2, "alpha": 0.117, "beta": 1.0, "entropy_low": 0.2885, "entropy_high": 0.7213, "mask_low": 0.03}
    text = random_text(generator, classes=4, dim=8)
    got = Tda(text=text, logit_scale=20.0, positive=positive, negative=negative, view_set="all")(views, logits)
    expected, caches = tda_oracle(views, logits, positive, negative)
    assert sum(len(queue) for queue in caches["p"].values()) == 12 and caches["n"]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_tda_that_saw_nothing_confident_is_zero_shot_but_for_its_own_key(generator):
    positive = {"size": 3, "alpha": 0.0, "beta": 5.0}
    negative = {"size": 2, "alpha": 0.0, "beta": 1.0, "entropy_low": 0.2885, "entropy_high": 0.7213, "mask_low": 0.03}
    views, logits = unit(8, 3, 8, generator=generator), torch.randn(8, 4, generator=generator)
    text = random_text(generator, classes=4, dim=8)
    assert torch.equal(Tda(text=text, logit_scale=20.0, positive=positive, negative=negative, view_set="all")(views, logits), logits)


def test_comparison_counts_and_covers():
    correct, baseline = np.array([1, 1, 1, 0, 0, 1], bool), np.array([0, 1, 0, 1, 0, 1], bool)
    result = compare(correct, baseline)
    assert (result.rescued, result.lost, result.difference) == (2, 1, pytest.approx(1 / 6))
    assert result.p_value == 1.0 and result.low <= result.difference <= result.high
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        truth = rng.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=150)
        interval = compare(truth > 0, truth < 0)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99
    with pytest.raises(ValueError, match="same images"):
        compare(correct, baseline[:3])
