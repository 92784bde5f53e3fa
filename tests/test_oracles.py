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
from multicrop.aggregators import marginals
from multicrop.compare.statistics import compare
from multicrop.methods.tda import Tda
from multicrop.text import TextBank
from multicrop.transport import entropic

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


ALL_SOLVERS = ("exact", "sinkhorn", "unbalanced", "partial")
MARGINAL_PAIRS = (("uniform", "uniform"), ("similarity", "similarity"), ("entropy", "entropy"), ("best_match", "best_match"))


@pytest.mark.parametrize("solver", ALL_SOLVERS)
@pytest.mark.parametrize(("view", "prompt"), MARGINAL_PAIRS)
class TestEveryTransport:
    """What section-wide properties promise, for each solver with each kind of marginals."""

    def logits(self, views, text, solver, view, prompt, **knobs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # float32 cannot always reach 1e-6
            return transport_logits(views, text, solver=solver, view_marginal=view, prompt_marginal=prompt, **knobs)

    def test_one_crop_and_one_description_give_the_plain_cosine(self, solver, view, prompt, generator):
        text, views = random_text(generator, prompts=2), unit(3, 2, 16, generator=generator)
        expected = views[:, 1] @ text.features[:, 1].T
        torch.testing.assert_close(self.logits(views, text, solver, view, prompt), expected, atol=1e-5, rtol=0)

    def test_the_order_of_crops_and_descriptions_changes_nothing(self, solver, view, prompt, generator):
        text, views = random_text(generator), unit(3, 6, 16, generator=generator)
        turned = text.features.clone()
        for c, row in enumerate(text.prompts):
            turned[c, 1 : len(row)] = text.features[c, 1 : len(row)].flip(0)
        other = TextBank(turned, text.mask, text.prompts)
        got = self.logits(views[:, [0, 4, 2, 5, 1, 3]], other, solver, view, prompt)
        torch.testing.assert_close(got, self.logits(views, text, solver, view, prompt), atol=2e-5, rtol=0)

    def test_a_masked_description_adds_nothing(self, solver, view, prompt, generator):
        text, views = random_text(generator), unit(3, 6, 16, generator=generator)
        features = torch.cat([text.features, unit(5, 2, 16, generator=generator)], 1)
        wider = TextBank(features, torch.cat([text.mask, torch.zeros(5, 2, dtype=torch.bool)], 1), text.prompts)
        expected = self.logits(views, text, solver, view, prompt)
        torch.testing.assert_close(self.logits(views, wider, solver, view, prompt), expected, atol=1e-5, rtol=0)

    def test_duplicating_every_crop_with_half_the_mass_changes_nothing(self, solver, view, prompt, generator):
        text, views = random_text(generator), unit(3, 5, 16, generator=generator)
        doubled = torch.cat([views, views[:, 1:]], 1)
        expected = self.logits(views, text, solver, view, prompt)
        torch.testing.assert_close(self.logits(doubled, text, solver, view, prompt), expected, atol=2e-5, rtol=0)

    def test_a_large_epsilon_gives_the_weighted_double_mean(self, solver, view, prompt, generator):
        if solver == "exact":
            pytest.skip("exact transport has no epsilon")
        text, views = random_text(generator), unit(3, 6, 16, generator=generator)
        chosen = text.select("descriptions")
        shared = {"name": view, "temperature": None, "view_set": "crops"}
        a = marginals.view_marginal(views, chosen, 1.0, **shared)
        b = marginals.prompt_marginal(views, chosen, text.label, 1.0, **{**shared, "name": prompt})
        expected = torch.einsum("bkd,bk,bcm,cmd->bc", views[:, 1:], a, b, chosen.features)
        got = self.logits(views, text, solver, view, prompt, epsilon=500.0, marginal_penalty=1.0)
        torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)

    @pytest.mark.parametrize("scale", [1.0, 100.0])
    def test_edges_and_half_precision_features_are_finite_and_right(self, solver, view, prompt, scale, generator):
        text, views = random_text(generator), unit(2, 6, 16, generator=generator)
        knobs = {"solver": solver, "epsilon": 0.05, "view_marginal": view, "prompt_marginal": prompt, "tolerance": 1e-5, **KNOBS}
        one_class = TextBank(text.features[:1], text.mask[:1], text.prompts[:1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = aggregators.optimal_transport(views, text, scale, **knobs)
            same = aggregators.optimal_transport(views[:, [0, 1, 1, 1]], text, scale, **knobs)
            once = aggregators.optimal_transport(views[:, :2], text, scale, **knobs)
            alone = aggregators.optimal_transport(views, one_class, scale, **knobs)
            halves = TextBank(text.features.half().float(), text.mask, text.prompts)
            half = aggregators.optimal_transport(views.half().float(), halves, scale, **knobs)
        torch.testing.assert_close(same, once, atol=scale * 1e-4, rtol=0)
        torch.testing.assert_close(half, logits, atol=scale * (0.1 if "entropy" in view and scale > 1 else 5e-3), rtol=0)
        assert alone.shape == (2, 1) and alone.isfinite().all()


def test_unbalanced_approaches_pots_unregularised_one(generator):
    text, views = random_text(generator, classes=3), unit(2, 6, 16, generator=generator)
    knobs = {"solver": "unbalanced", "epsilon": 1e-3, "marginal_penalty": 0.1, "tolerance": 1e-5}
    _, plans, _ = aggregators.transport_plan(views, text, max_iterations=20000, **knobs, **KNOBS)
    for b in range(2):
        for c in range(3):
            cost = 1 - (views[b, 1:] @ text.features[c, 1 : len(text.prompts[c])].T).double().numpy()
            k, m = cost.shape
            plan = ot.unbalanced.mm_unbalanced(
                np.full(k, 1 / k), np.full(m, 1 / m), cost - cost.min(), 0.1, numItermax=50000, stopThr=1e-14
            )
            ours = plans[b, c, :, :m].double().numpy()
            assert (ours * cost).sum() / ours.sum() == pytest.approx((plan * cost).sum() / plan.sum(), abs=5e-3)


@pytest.mark.parametrize(("epsilon", "power"), [(0.05, 1), (5e-3, 1), (5e-3, 40)])
def test_scalings_that_leave_float32_still_end_at_the_float64_plan(epsilon, power, generator):
    cost = 1 - (unit(1, 1, 64, 32, generator=generator) @ unit(1, 1, 50, 32, generator=generator).mT)
    a, b = torch.rand(1, 1, 64, generator=generator) ** power, torch.rand(1, 1, 50, generator=generator) ** power
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = transport.sinkhorn(cost, a, b, epsilon=epsilon, tolerance=1e-6, max_iterations=20000)
    assert plan.isfinite().all()
    rows, columns, table = (x[0, 0].double().numpy() for x in (a, b, cost))
    knobs = {"method": "sinkhorn_log", "numItermax": 20000, "stopThr": 1e-10, "warn": False}
    expected = ot.sinkhorn(rows / rows.sum(), columns / columns.sum(), table, epsilon, **knobs)
    assert float((plan[0, 0].double().numpy() * table).sum()) == pytest.approx((expected * table).sum(), abs=1e-5)


def test_lost_scalings_are_done_again_in_the_log_domain(generator, monkeypatch):
    cost = 1 - torch.rand(5, 5, 6, generator=generator)
    a, b = torch.ones(5, 5), torch.ones(5, 6)
    a[1, 4] = a[3, 0] = b[1, 5] = b[3, 5] = 0  # crops without mass, and padding
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    expected = entropic.start(cost, a, b, 0.05)
    expected.iterate(40)
    iterate, log_step, redone = entropic.Scalings.iterate, entropic.Scalings.log_step, []

    def overflow(state, times):
        iterate(state, times)
        state.r[1], state.s[2, 3], state.r[4, 2] = torch.inf, torch.nan, 0
        state.s[3] *= 1e20  # out of range, but not lost
        state.r[3] /= 1e20

    def counted(state, epsilon):
        redone.append(len(state.cost))
        log_step(state, epsilon)

    monkeypatch.setattr(entropic.Scalings, "iterate", overflow)
    monkeypatch.setattr(entropic.Scalings, "log_step", counted)
    state = entropic.start(cost, a, b, 0.05)
    entropic.advance(state, 40, 0.05)
    torch.testing.assert_close(state.plan(), expected.plan(), atol=1e-5, rtol=1e-3)
    assert redone == [3] * 40  # the first problem is in range, and the fourth keeps its iterations
    assert torch.equal(state.r, (a > 0).float()) and torch.equal(state.s, (b > 0).float())
    assert state.f.isfinite().all() and state.g.isfinite().all()


@pytest.mark.parametrize(
    ("scaling", "outside"),
    [(1.0, False), (1e11, False), (1e-11, False), (1e13, True), (1e-13, True), (0.0, True), (math.inf, True), (math.nan, True)],
)
def test_a_scaling_is_out_of_range_only_where_there_is_mass(scaling, outside):
    cost, a, b = torch.zeros(4, 2, 3), torch.full((4, 2), 0.5), torch.full((4, 3), 1 / 3)
    a[2, 1] = b[3, 2] = 0
    state = entropic.start(cost, a, b, 0.05)
    state.r[[0, 2], 1] = scaling
    state.s[[1, 3], 2] = scaling
    assert state.out_of_range().tolist() == [outside, outside, False, False]


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


@pytest.mark.parametrize("iterations", [3, 12])
def test_a_solver_that_has_not_converged_names_the_knob_and_gives_the_plan_so_far(iterations, generator):
    """The iterations of Sinkhorn in float64 from the potentials that give each row and each column an entry of 1."""
    cost = 1 - torch.rand(2, 3, 5, 4, generator=generator)
    a, b = torch.full((2, 3, 5), 1 / 5), torch.full((2, 3, 4), 1 / 4)
    with pytest.warns(UserWarning, match=rf"after {iterations} iterations .*aggregator\.max_iterations"):
        plan = transport.solve(cost, a, b, solver="sinkhorn", epsilon=0.02, tolerance=1e-9, max_iterations=iterations)
    for i, c in np.ndindex(2, 3):
        table = cost[i, c].double().numpy()
        f = table.min(1)
        g = (table - f[:, None]).min(0)
        kernel, s = np.exp((f[:, None] + g - table) / 0.02), np.ones(4)
        for _ in range(iterations):
            r = 1 / 5 / (kernel @ s)
            s = 1 / 4 / (r @ kernel)
        np.testing.assert_allclose(plan[i, c].numpy(), r[:, None] * kernel * s, atol=1e-6, rtol=1e-4)


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


@pytest.mark.parametrize("broken", ["cost", "views", "prompts"])
def test_exact_transport_refuses_what_would_crash_the_simplex(broken):
    problem = {"cost": torch.rand(1, 2, 4, 3), "views": torch.ones(1, 2, 4), "prompts": torch.ones(1, 2, 3)}
    problem[broken][0, 1] = torch.nan if broken == "cost" else 0
    with warnings.catch_warnings(), pytest.raises(ValueError, match="not finite"):
        warnings.simplefilter("error")  # the error alone, no warning of the division before it
        transport.exact(*problem.values())


def test_exact_transport_says_how_many_problems_it_left_unsolved(generator, monkeypatch):
    cost, a, b = torch.rand(1, 3, 6, 5, generator=generator), torch.ones(1, 3, 6), torch.ones(1, 3, 5)
    b[0, 2, 3:] = 0
    expected = transport.exact(cost, a, b)
    monkeypatch.setattr(transport.simplex, "MAX_PIVOTS", 1)
    with pytest.warns(UserWarning, match=r"not solved for 3 of 3 problems .*aggregator\.solver=sinkhorn"):
        plan = transport.exact(cost, a, b)
    assert (expected[0, 2, :, 3:] == 0).all() and not torch.equal(plan, expected)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_a_uniform_marginal_gives_the_members_of_a_set_equal_masses(shape, generator):
    mask = torch.rand(shape, generator=generator) < 0.5
    mask[..., 1] = True
    masses = transport.uniform_marginal(mask)
    for index in np.ndindex(shape):
        assert float(masses[index]) == pytest.approx(float(mask[index]) / int(mask[index[:-1]].sum()))


@pytest.mark.parametrize("max_iterations", [1, 5, 12])
def test_a_problem_whose_error_equals_the_tolerance_still_has_its_plan(max_iterations):
    """One crop and one prompt have a marginal error of exactly 0: with a tolerance of 0 it is reached and never fallen below."""
    one = torch.ones(1, 2, 1)
    with pytest.warns(UserWarning, match=r"marginal error of 0.*after .* iterations .*aggregator\.max_iterations"):
        plan = transport.solve(
            torch.zeros(1, 2, 1, 1), one, one, solver="sinkhorn", epsilon=0.1, tolerance=0.0, max_iterations=max_iterations
        )
    assert plan.flatten().tolist() == [1.0, 1.0]
