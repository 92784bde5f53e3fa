"""Few-shot adapters of closed form, and LP++, against plain loops, scikit-learn and SciPy."""

import math

import numpy as np
import pytest
import torch
from conftest import unit
from few_shot_problem import Problem, cosine, pooled
from refusals import refused
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from multicrop.adapters.ape import Ape, criterion
from multicrop.adapters.base import Examples
from multicrop.adapters.gda import Gda
from multicrop.adapters.linear_probe import LinearProbe
from multicrop.adapters.lp_pp import LpPp
from multicrop.adapters.tip_adapter import TipAdapter

PROBE = {"inverse_penalty": 5.0, "share": 1.0, "text_set": "none", "view_set": "all", "max_iterations": 5000}
APE = {"similarity_weight": 0.7, "variance_weight": 0.4, "channel_share": 0.5, "text_set": "all", "view_set": "all"}


@pytest.fixture
def problem(generator):
    return Problem(generator)


class TestTipAdapter:
    def test_is_a_loop(self, problem):
        support, queries = problem.support, problem.validation
        got = problem.adapted(problem.fitted(TipAdapter, alpha=1.5, beta=2.5, view_set="all"))
        for b in range(20):
            expected = queries.logits[b].clone()
            for n in range(12):
                similarity = cosine(queries.views[b].sum(0), support.views[n].sum(0))
                expected[support.labels[n]] += 1.5 * math.exp(-2.5 * (1 - similarity))
            torch.testing.assert_close(got[b], expected, atol=1e-5, rtol=0)


class Covariance(BaseEstimator):
    def __init__(self, matrix=None):
        self.matrix = matrix

    def fit(self, x):
        self.covariance_ = self.matrix
        return self


class TestGda:
    @pytest.mark.parametrize("samples", ["views", "images"])
    def test_is_scikit_learns_discriminant_analysis_with_the_papers_covariance(self, problem, samples):
        adapter = problem.fitted(Gda, alpha=0.3, view_set="all", samples=samples)
        views, labels = problem.support.views.double(), problem.support.labels.numpy()
        x = pooled(views).numpy() if samples == "images" else views.flatten(0, 1).numpy()
        y = labels if samples == "images" else np.repeat(labels, 4)
        scatter = np.zeros((8, 8))
        for c in range(3):
            for sample in x[y == c]:
                scatter += np.outer(sample - x[y == c].mean(0), sample - x[y == c].mean(0))
        matrix = (scatter + np.trace(scatter / (len(x) - 1)) * np.eye(8)) / 8
        lda = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Covariance(matrix), priors=np.full(3, 1 / 3)).fit(x, y)
        expected = problem.validation.logits + 0.3 * torch.tensor(lda.decision_function(pooled(problem.validation.views.double()).numpy()))
        torch.testing.assert_close(problem.adapted(adapter).double(), expected, atol=1e-3, rtol=1e-4)

    def test_refuses_one_sample_a_class_and_a_class_without(self, problem):
        one = Examples(problem.support.views[:3], problem.support.logits[:3], problem.support.labels[:3])
        adapter = Gda(score=problem.score, alpha=1.0, view_set="all", samples="images")
        with refused("covariance", "task.shots", "samples=views"):
            adapter.fit(one, problem.validation)
        with refused("1 of 3 classes have none", "positions [2]", "tip_adapter"):
            adapter.fit(Examples(one.views[:2], one.logits[:2], one.labels[:2]), problem.validation)
        with refused("adapter.samples", "'crops'"):
            problem.fitted(Gda, alpha=1.0, view_set="all", samples="crops")


class TestLpPp:
    @pytest.mark.parametrize("gradient", ["accumulated", "current"])
    def test_is_the_papers_descent_in_numpy(self, problem, gradient):
        adapter = problem.fitted(LpPp, alpha_gradient=gradient, iterations=25, view_set="all", search={"every": 1})
        f, t, y = (
            pooled(problem.support.views.double()).numpy(),
            problem.support.logits.double().numpy() / 10,
            problem.support.labels.numpy(),
        )
        fv, tv, yv = (
            pooled(problem.validation.views.double()).numpy(),
            problem.validation.logits.double().numpy() / 10,
            problem.validation.labels,
        )
        zero_shot = (problem.validation.logits.argmax(1) == yv).float().mean().item()
        v, b, truth = np.stack([f[y == c].sum(0) for c in range(3)]), np.zeros(3), np.eye(3)[y]
        alpha = np.full(3, 250 * np.mean([t[y == c, c].mean() for c in range(3)]))
        step, alpha_step = 4 * 12 / np.linalg.eigvalsh(f.T @ f).max(), 12 / (4 * (t**2).sum(0).max())
        speed_v, speed_b, total, best, losses = 0, 0, 0, zero_shot, []
        for k in range(25):
            logits = f @ v.T + b + alpha * t
            losses.append(-log_softmax(logits, 1)[truth == 1].mean())
            error = (softmax(logits, 1) - truth) / 12
            speed_v, speed_b = 0.9 * speed_v + error.T @ f, 0.9 * speed_b + error.sum(0)
            slope = (error * t).sum(0)
            total = total + slope
            v, b = v - step * speed_v, b - step * speed_b
            if (k + 1) % 10 == 0:
                alpha = alpha - alpha_step * (total if gradient == "accumulated" else slope)
            logits = fv @ v.T + b + alpha * tv
            if (accuracy := (logits.argmax(1) == yv.numpy()).mean()) >= best:
                best, expected, iteration = accuracy, logits, k + 1
        np.testing.assert_allclose(adapter.losses, losses, atol=1e-3)
        assert adapter.selection["chosen"]["iteration"] == iteration and len(adapter.selection["curve"]) == 26
        np.testing.assert_allclose(problem.adapted(adapter).numpy(), expected, atol=1e-3, rtol=1e-4)

    def test_the_two_gradients_differ_and_the_loss_falls(self, problem):
        one, two = (problem.fitted(LpPp, alpha_gradient=g, iterations=300, view_set="all") for g in ("accumulated", "current"))
        assert not torch.equal(one.alpha, two.alpha) or one.losses != two.losses
        assert two.losses[-1] < two.losses[0] and one.losses[-1] < one.losses[0]

    def test_rounded_products_end_near(self, problem):
        knobs = {"alpha_gradient": "accumulated", "iterations": 100, "view_set": "all"}
        exact, rounded = (problem.fitted(LpPp, products=products, **knobs) for products in ("fp32", "bf16"))
        error = (exact.weight - rounded.weight).norm() / exact.weight.norm()
        assert 0 < error < 0.01 and rounded.weight.dtype == torch.float32
        logits = problem.adapted(exact)
        assert (problem.adapted(rounded) - logits).abs().max() < 0.05 * logits.std()
        with refused("adapter.products", "fp32, bf16", "'fp16'"):
            problem.fitted(LpPp, products="fp16", **knobs)

    def test_patience_ends_the_descent_where_validation_accuracy_stays(self, problem):
        knobs = {"alpha_gradient": "accumulated", "view_set": "all", "search": {"every": 1}}
        whole, ended = (problem.fitted(LpPp, iterations=60, patience=patience, **knobs) for patience in (None, 7))
        points = [point["accuracy"] for point in ended.selection["curve"]]
        rose = points.index(max(points))
        assert len(points) == 1 + rose + 7 < 61 == len(whole.selection["curve"])
        same = problem.fitted(LpPp, iterations=rose + 7, **knobs)
        assert same.selection == ended.selection and torch.equal(same.weight, ended.weight)

    def test_refuses_another_gradient(self, problem):
        with refused("alpha_gradient", "accumulated, current", "'zeroed'"):
            LpPp(score=problem.score, alpha_gradient="zeroed", iterations=3, view_set="all")

    def test_fixed_is_the_last_iteration_and_a_descent_that_harms_is_not_taken(self, problem):
        adapter = problem.fitted(LpPp, alpha_gradient="current", iterations=12, view_set="all")
        assert adapter.selection["how"] == "fixed" and adapter.selection["chosen"]["iteration"] == 12
        support, validation = problem.support, problem.validation
        wrong = Examples(support.views, support.logits, (support.labels + 1) % 3)
        right = Examples(validation.views, 5 * torch.eye(3)[validation.labels], validation.labels)
        adapter = LpPp(score=problem.score, alpha_gradient="current", iterations=12, view_set="all", search={"every": 5})
        adapter.fit(wrong, right)
        assert [point["iteration"] for point in adapter.selection["curve"]] == [0, 5, 10, 12]
        assert adapter.selection["chosen"] == {"iteration": 0, "accuracy": 1.0}
        torch.testing.assert_close(adapter(right.views, right.logits), right.logits)


class TestLinearProbe:
    @pytest.mark.parametrize("classes", [2, 3])
    @pytest.mark.parametrize("text_set", ["none", "all"])
    def test_is_the_minimum_that_scipy_finds(self, generator, classes, text_set):
        problem = Problem(generator, classes=classes)
        adapter, text = problem.fitted(LinearProbe, **{**PROBE, "text_set": text_set, "share": 0.6}), problem.score.text
        x, y = list(pooled(problem.support.views)), problem.support.labels.tolist()
        for c in range(classes if text_set == "all" else 0):
            x += [text.features[c, m] for m in range(len(text.prompts[c]))]
            y += [c] * len(text.prompts[c])
        x = torch.stack(x).double().numpy()

        def objective(parameters):
            w, b = parameters[: classes * 8].reshape(classes, 8), parameters[classes * 8 :]
            return (w**2).sum() / 2 - 5 * log_softmax(x @ w.T + b, 1)[np.arange(len(y)), y].sum()

        best = minimize(objective, np.zeros(classes * 9), tol=1e-9).x
        f = pooled(problem.validation.views).double().numpy()
        expected = f @ best[: classes * 8].reshape(classes, 8).T + best[classes * 8 :]
        got = ((problem.adapted(adapter) - 0.4 * problem.validation.logits) / 0.6).double().numpy()
        np.testing.assert_allclose(softmax(got, 1), softmax(expected, 1), atol=1e-3)

    def test_every_penalty_of_the_search_is_the_one_fitted_alone(self, problem):
        searched = problem.fitted(LinearProbe, **PROBE, search={"inverse_penalty": [20.0, 0.5], "share": [1.0]})
        for c in (0.5, 20.0):
            alone = problem.fitted(LinearProbe, **{**PROBE, "inverse_penalty": c})
            for got, expected in zip(searched.probes[c], alone.probes[c], strict=True):
                torch.testing.assert_close(got, expected, atol=5e-3, rtol=5e-3)

    def test_a_prompt_stands_for_a_class_without_images(self, problem):
        part = Examples(problem.support.views[:2], problem.support.logits[:2], problem.support.labels[:2])
        LinearProbe(score=problem.score, **{**PROBE, "text_set": "label"}).fit(part, problem.validation)
        with refused("1 of 3 classes have none"):
            LinearProbe(score=problem.score, **PROBE).fit(part, problem.validation)

    def test_refuses_no_penalty_and_more_than_all(self, problem):
        with refused("adapter.share lies in 0-1", "1.5"):
            LinearProbe(score=problem.score, **{**PROBE, "share": 1.5})
        with refused("adapter.inverse_penalty is above 0"):
            LinearProbe(score=problem.score, **PROBE, search={"inverse_penalty": [0.0]})


class TestApe:
    def test_criterion_is_four_loops(self, generator):
        text, keys, labels = unit(3, 8, generator=generator), unit(6, 8, generator=generator), torch.tensor([0, 0, 1, 1, 1, 2])
        samples = [[text[c], *keys[labels == c]] for c in range(3)]
        pairs = [a * b for i in range(3) for j in range(3) if i != j for a in samples[i] for b in samples[j]]
        variance = torch.tensor([np.var([float(text[c, d]) for c in range(3)], ddof=1) for d in range(8)])
        expected = -0.7 * sum(pairs) / len(pairs) + 0.4 * variance
        torch.testing.assert_close(criterion(text, keys, labels, 0.7, 0.4), expected.float(), atol=1e-6, rtol=0)

    def test_is_a_loop(self, problem):
        adapter, text = problem.fitted(Ape, alpha=1.5, beta=2.5, gamma=0.3, **APE), problem.score.text
        w = pooled([text.features[c, : len(text.prompts[c])] for c in range(3)])
        keys, labels, queries = pooled(problem.support.views), problem.support.labels, pooled(problem.validation.views)
        order = criterion(w, keys, labels, 0.7, 0.4).argsort(descending=True)[:4]
        assert set(adapter.channels.tolist()) == set(order.tolist())
        got = problem.adapted(adapter)
        for b in range(20):
            expected = problem.validation.logits[b].clone()
            for n in range(12):
                p = torch.tensor([cosine(keys[n, order], w[c, order]) for c in range(3)]).softmax(0)
                truth = torch.eye(3)[labels[n]]
                divergence = float((truth * torch.log2((truth + 1e-6) / (p + 1e-6))).sum())
                weight = math.exp(0.3 * divergence - 2.5 * (1 - cosine(queries[b, order], keys[n, order])))
                expected += 1.5 * weight * truth
            torch.testing.assert_close(got[b], expected, atol=1e-4, rtol=0)

    def test_all_channels_and_no_weighting_is_tip_adapter(self, problem):
        ape = problem.fitted(Ape, alpha=1.5, beta=2.5, gamma=0.0, **{**APE, "channel_share": 1.0})
        tip = problem.fitted(TipAdapter, alpha=1.5, beta=2.5, view_set="all")
        torch.testing.assert_close(problem.adapted(ape), problem.adapted(tip), atol=1e-5, rtol=0)

    def test_refuses_no_channels(self, problem):
        with refused("channel_share", "0.0"):
            Ape(score=problem.score, alpha=1.0, beta=1.0, gamma=0.0, **{**APE, "channel_share": 0.0})
