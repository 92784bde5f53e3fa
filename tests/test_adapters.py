"""Few-shot adapters against plain loops, scikit-learn and SciPy; trained ones against what training must do."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import composed, options, pictures, random_text, unit
from hydra.utils import instantiate
from refusals import refused
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from multicrop import aggregators
from multicrop import session as session_module
from multicrop.adapters.ape import Ape, criterion
from multicrop.adapters.base import Examples
from multicrop.adapters.clip_adapter import ClipAdapter
from multicrop.adapters.gda import Gda
from multicrop.adapters.linear_probe import LinearProbe
from multicrop.adapters.lp_pp import LpPp
from multicrop.adapters.taskres import TaskRes
from multicrop.adapters.tip_adapter import TipAdapter
from multicrop.adapters.tip_adapter_f import TipAdapterF
from multicrop.datasets.base import Dataset
from multicrop.tasks import Scorer

MEAN = partial(aggregators.mean_feature, view_set="all", text_set="all")
TRAINING = {"epochs": 20, "batch_size": 256, "seed": 0}
TIP_F = {"alphas": [1.5], "betas": [2.5], "view_set": "all", "samples": "views", "learning_rate": 0.01, **TRAINING}
PROBE = {"inverse_penalties": [5.0], "text_weights": [0.0], "text_set": "none", "view_set": "all", "max_iterations": 5000}
APE = {"similarity_weight": 0.7, "variance_weight": 0.4, "channel_share": 0.5, "text_set": "all", "view_set": "all"}


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


class Problem:
    """12 support and 20 validation images of a few classes, with what an adapter is constructed from."""

    def __init__(self, generator, *, classes=3, aggregator=MEAN, dim=8):
        text = random_text(generator, classes=classes, dim=dim)
        self.score = Scorer(text, 10.0, aggregator, 1.0)
        self.given = {"text": text, "logit_scale": 10.0, "score": self.score}
        centres = unit(classes, 1, dim, generator=generator)
        self.support, self.validation = (self._examples(n, centres, generator) for n in (12, 20))

    def _examples(self, n, centres, generator):
        labels = torch.arange(n) % len(centres)
        views = torch.nn.functional.normalize(centres[labels] + 0.4 * torch.randn(n, 4, centres.shape[2], generator=generator), dim=-1)
        return Examples(views, self.score(views), labels)

    def fitted(self, adapter, **knobs):
        adapter = adapter(**self.given, **knobs)
        adapter.fit(self.support, self.validation)
        return adapter

    def adapted(self, adapter):
        return adapter(self.validation.views, self.validation.logits)


@pytest.fixture
def problem(generator):
    return Problem(generator)


def pooled(views):
    return torch.stack([sum(image) / sum(image).norm() for image in views])


class TestTipAdapter:
    def test_is_a_loop(self, problem):
        support, queries = problem.support, problem.validation
        got = problem.adapted(problem.fitted(TipAdapter, alphas=[1.5], betas=[2.5], view_set="all"))
        for b in range(20):
            expected = queries.logits[b].clone()
            for n in range(12):
                similarity = cosine(queries.views[b].sum(0), support.views[n].sum(0))
                expected[support.labels[n]] += 1.5 * math.exp(-2.5 * (1 - similarity))
            torch.testing.assert_close(got[b], expected, atol=1e-5, rtol=0)

    def test_takes_the_best_of_its_grid_on_validation(self, problem):
        adapter = problem.fitted(TipAdapter, alphas=[0.1, 1.0, 5.0], betas=[1.0, 6.0], view_set="all")
        validation = problem.validation
        correct = lambda a, b: adapter.adapted(validation.views, validation.logits, a, b).argmax(1) == validation.labels  # noqa: E731
        grid = {(a, b): correct(a, b).float().mean().item() for a in (0.1, 1.0, 5.0) for b in (1.0, 6.0)}
        assert grid[adapter.alpha, adapter.beta] == max(grid.values()) and len(adapter.selection["curve"]) == 6

    def test_refuses_an_empty_grid(self, problem):
        with refused("alphas", "betas > 0"):
            TipAdapter(**problem.given, alphas=[1.0], betas=[], view_set="all")


class TestTipAdapterF:
    @pytest.mark.parametrize("samples", ["views", "images"])
    def test_starts_as_tip_adapter_and_the_loss_falls(self, problem, samples):
        knobs = {**TIP_F, "samples": samples}
        still, moved = problem.fitted(TipAdapterF, **{**knobs, "learning_rate": 0.0}), problem.fitted(TipAdapterF, **knobs)
        plain = problem.fitted(TipAdapter, alphas=[1.5], betas=[2.5], view_set="all")
        assert torch.equal(problem.adapted(still), problem.adapted(plain))
        assert moved.losses[0] == pytest.approx(still.losses[0]) and moved.losses[-1] < 0.95 * moved.losses[0]
        assert not moved.keys.requires_grad and moved.selection["how"] == "fixed"

    def test_one_full_batch_step_is_adamw(self, problem):
        adapter = problem.fitted(TipAdapterF, **{**TIP_F, "epochs": 1, "samples": "images"})
        keys = pooled(problem.support.views).requires_grad_()
        queries, labels = pooled(problem.support.views), problem.support.labels
        values = torch.nn.functional.one_hot(labels, 3).float()
        logits = problem.support.logits + 1.5 * torch.exp(-2.5 * (1 - queries @ keys.T)) @ values
        torch.nn.functional.cross_entropy(logits, labels).backward()
        step = keys.grad / (keys.grad.abs() + 1e-4)
        torch.testing.assert_close(adapter.keys, keys.detach() * (1 - 0.01 * 0.01) - 0.01 * step, atol=1e-5, rtol=0)

    def test_same_seed_same_keys(self, problem):
        make = lambda seed: problem.fitted(TipAdapterF, **{**TIP_F, "batch_size": 5, "seed": seed}).keys  # noqa: E731
        assert torch.equal(make(3), make(3)) and not torch.equal(make(3), make(4))


class Covariance(BaseEstimator):
    def __init__(self, matrix=None):
        self.matrix = matrix

    def fit(self, x):
        self.covariance_ = self.matrix
        return self


class TestGda:
    @pytest.mark.parametrize("samples", ["views", "images"])
    def test_is_scikit_learns_discriminant_analysis_with_the_papers_covariance(self, problem, samples):
        adapter = problem.fitted(Gda, alphas=[0.3], view_set="all", samples=samples)
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

    def test_chooses_alpha_on_validation(self, problem):
        adapter = problem.fitted(Gda, alphas=[0.001, 0.1, 10.0], view_set="all", samples="views")
        curve = {point["alpha"]: point["accuracy"] for point in adapter.selection["curve"]}
        assert adapter.selection["how"] == "validation" and curve[adapter.alpha] == max(curve.values())

    def test_refuses_one_sample_a_class_and_a_class_without(self, problem):
        one = Examples(problem.support.views[:3], problem.support.logits[:3], problem.support.labels[:3])
        adapter = Gda(**problem.given, alphas=[1.0], view_set="all", samples="images")
        with refused("covariance", "task.shots", "samples=views"):
            adapter.fit(one, problem.validation)
        with refused("1 of 3 classes have none", "positions [2]", "tip_adapter"):
            adapter.fit(Examples(one.views[:2], one.logits[:2], one.labels[:2]), problem.validation)
        with refused("adapter.samples", "'crops'"):
            problem.fitted(Gda, alphas=[1.0], view_set="all", samples="crops")


class TestLpPp:
    @pytest.mark.parametrize("gradient", ["accumulated", "current"])
    def test_is_the_papers_descent_in_numpy(self, problem, gradient):
        adapter = problem.fitted(LpPp, alpha_gradient=gradient, iterations=25, view_set="all")
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
        v, b, truth = np.stack([f[y == c].sum(0) for c in range(3)]), np.zeros(3), np.eye(3)[y]
        alpha = np.full(3, 250 * np.mean([t[y == c, c].mean() for c in range(3)]))
        step, alpha_step = 4 * 12 / np.linalg.eigvalsh(f.T @ f).max(), 12 / (4 * (t**2).sum(0).max())
        speed_v, speed_b, total, best, losses = 0, 0, 0, -1, []
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
        assert adapter.selection["chosen"]["iteration"] == iteration and len(adapter.selection["curve"]) == 25
        np.testing.assert_allclose(problem.adapted(adapter).numpy(), expected, atol=1e-3, rtol=1e-4)

    def test_the_two_gradients_differ_and_the_loss_falls(self, problem):
        one, two = (problem.fitted(LpPp, alpha_gradient=g, iterations=300, view_set="all") for g in ("accumulated", "current"))
        assert not torch.equal(one.alpha, two.alpha) or one.losses != two.losses
        assert two.losses[-1] < two.losses[0] and one.losses[-1] < one.losses[0]

    def test_refuses_another_gradient(self, problem):
        with refused("alpha_gradient", "accumulated, current", "'zeroed'"):
            LpPp(**problem.given, alpha_gradient="zeroed", iterations=3, view_set="all")


class TestLinearProbe:
    @pytest.mark.parametrize("classes", [2, 3])
    @pytest.mark.parametrize("text_set", ["none", "all"])
    def test_is_the_minimum_that_scipy_finds(self, generator, classes, text_set):
        problem = Problem(generator, classes=classes)
        adapter, text = problem.fitted(LinearProbe, **{**PROBE, "text_set": text_set, "text_weights": [0.5]}), problem.score.text
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
        got = (problem.adapted(adapter) - 0.5 * problem.validation.logits).double().numpy()
        np.testing.assert_allclose(softmax(got, 1), softmax(expected, 1), atol=1e-3)

    def test_chooses_penalty_and_text_weight_together(self, problem):
        adapter = problem.fitted(LinearProbe, **{**PROBE, "inverse_penalties": [0.01, 10.0], "text_weights": [0.0, 1.0]})
        best = max(point["accuracy"] for point in adapter.selection["curve"])
        got = (problem.adapted(adapter).argmax(1) == problem.validation.labels).float().mean().item()
        assert len(adapter.selection["curve"]) == 4 and got == adapter.selection["chosen"]["accuracy"] == best

    def test_a_prompt_stands_for_a_class_without_images(self, problem):
        part = Examples(problem.support.views[:2], problem.support.logits[:2], problem.support.labels[:2])
        LinearProbe(**problem.given, **{**PROBE, "text_set": "label"}).fit(part, problem.validation)
        with refused("1 of 3 classes have none"):
            LinearProbe(**problem.given, **PROBE).fit(part, problem.validation)


@pytest.mark.parametrize("knob", ["epochs", "batch_size"])
def test_training_refuses_nothing_to_do(problem, knob):
    with refused("training wants epochs, batch_size"):
        problem.fitted(TipAdapterF, **{**TIP_F, knob: 0})


class TestTaskRes:
    def make(self, problem, **knobs):
        return TaskRes(**problem.given, **{"residual_scale": 0.5, "learning_rate": 0.02, **TRAINING, **knobs})

    def test_starts_as_zero_shot_and_then_is_a_loop(self, problem, generator):
        adapter, text = self.make(problem), problem.score.text
        torch.testing.assert_close(problem.adapted(adapter), problem.validation.logits, atol=1e-5, rtol=0)
        adapter.residual.data = torch.randn(3, 8, generator=generator)
        for b, c in itertools.product(range(20), range(3)):
            moved = [text.features[c, m] + 0.5 * adapter.residual[c].detach() for m in range(len(text.prompts[c]))]
            expected = 10 * cosine(problem.validation.views[b].sum(0), sum(prompt / prompt.norm() for prompt in moved))
            assert problem.adapted(adapter)[b, c].item() == pytest.approx(expected, abs=1e-4)
        assert problem.score.text is text

    @pytest.mark.parametrize("aggregator", ["mean_feature", "max", "optimal_transport"])
    def test_the_loss_falls_through_the_aggregator(self, generator, aggregator):
        problem = Problem(generator, aggregator=instantiate(composed(f"aggregator={aggregator}").aggregator))
        adapter = self.make(problem)
        adapter.fit(problem.support, problem.validation)
        zero_shot = torch.nn.functional.cross_entropy(problem.support.logits, problem.support.labels).item()
        assert adapter.losses[0] == pytest.approx(zero_shot, abs=1e-3) and adapter.losses[-1] < 0.9 * zero_shot

    def test_same_seed_same_residual(self, problem):
        make = lambda seed: problem.fitted(partial(self.make_from, seed=seed)).residual  # noqa: E731
        assert torch.equal(make(3), make(3)) and not torch.equal(make(3), make(4))

    @staticmethod
    def make_from(*, seed, **given):
        return TaskRes(**given, **{"residual_scale": 0.5, "learning_rate": 0.02, **TRAINING, "batch_size": 5, "seed": seed})


class TestClipAdapter:
    def make(self, problem, **knobs):
        return ClipAdapter(**problem.given, **{"ratio": 0.2, "reduction": 2, "learning_rate": 0.05, **TRAINING, **knobs})

    def test_ratio_0_is_zero_shot_and_else_it_is_a_loop(self, problem):
        torch.testing.assert_close(problem.adapted(self.make(problem, ratio=0.0)), problem.validation.logits, atol=1e-5, rtol=0)
        adapter, views = self.make(problem), problem.validation.views
        moved = adapter.moved(views)
        for b, k in itertools.product(range(20), range(4)):
            bottleneck = (adapter.up @ (adapter.down @ views[b, k]).clamp(min=0)).clamp(min=0)
            expected = 0.2 * bottleneck + 0.8 * views[b, k]
            torch.testing.assert_close(moved[b, k], expected / expected.norm(), atol=1e-5, rtol=0)
        torch.testing.assert_close(problem.adapted(adapter), problem.score(moved))

    def test_the_norm_of_the_features_does_not_matter(self, problem):
        adapter, views = self.make(problem), problem.validation.views
        torch.testing.assert_close(adapter.moved(10 * views), adapter.moved(views), atol=1e-5, rtol=0)

    def test_the_loss_falls_and_same_seed_same_weights(self, problem):
        fit = lambda seed: problem.fitted(lambda **_: self.make(problem, seed=seed, batch_size=6))  # noqa: E731
        one, two, other = fit(3), fit(3), fit(4)
        assert one.losses[-1] < 0.9 * one.losses[0]
        assert torch.equal(one.up, two.up) and torch.equal(one.down, two.down) and not torch.equal(one.up, other.up)

    def test_refuses_no_channels(self, problem):
        with refused("adapter.reduction in 1-8", "got 0.2 and 9"):
            self.make(problem, reduction=9)


class TestApe:
    def test_criterion_is_four_loops(self, generator):
        text, keys, labels = unit(3, 8, generator=generator), unit(6, 8, generator=generator), torch.tensor([0, 0, 1, 1, 1, 2])
        samples = [[text[c], *keys[labels == c]] for c in range(3)]
        pairs = [a * b for i in range(3) for j in range(3) if i != j for a in samples[i] for b in samples[j]]
        variance = torch.tensor([np.var([float(text[c, d]) for c in range(3)], ddof=1) for d in range(8)])
        expected = -0.7 * sum(pairs) / len(pairs) + 0.4 * variance
        torch.testing.assert_close(criterion(text, keys, labels, 0.7, 0.4), expected.float(), atol=1e-6, rtol=0)

    def test_is_a_loop(self, problem):
        adapter, text = problem.fitted(Ape, alphas=[1.5], betas=[2.5], gammas=[0.3], **APE), problem.score.text
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
        ape = problem.fitted(Ape, alphas=[1.5], betas=[2.5], gammas=[0.0], **{**APE, "channel_share": 1.0})
        tip = problem.fitted(TipAdapter, alphas=[1.5], betas=[2.5], view_set="all")
        torch.testing.assert_close(problem.adapted(ape), problem.adapted(tip), atol=1e-5, rtol=0)

    def test_refuses_no_channels_and_no_grid(self, problem):
        with refused("betas > 0", "[0.0]"):
            Ape(**problem.given, alphas=[1.0], betas=[0.0], gammas=[0.0], **APE)
        with refused("channel_share", "0.0"):
            Ape(**problem.given, alphas=[1.0], betas=[1.0], gammas=[0.0], **{**APE, "channel_share": 0.0})


@pytest.mark.parametrize("option", options("adapter"))
def test_few_shot_opens_no_test_image(option, generator):
    train, test = pictures(12, "train"), pictures(4, "test")
    opened = []

    def bank(images):
        opened.extend(images.ids)
        views = unit(len(images), 4, 8, generator=generator)
        return SimpleNamespace(tensors=lambda: (views, torch.tensor(images.labels)))

    text = random_text(generator, classes=2, dim=8)
    session = session_module.Session(composed(f"adapter={option}"))
    session.dataset = Dataset("pictures", ["zero", "one"], {}, train, train.subset([]), test)
    session.scorer, session.bank = Scorer(text, 10.0, MEAN, 1.0), bank
    task = session_module.few_shot(session, fusion_weight=1.0, shots=2)
    assert opened and not set(opened) & set(test.ids) and task.adapter.selection["images"] == 4


@pytest.mark.parametrize("option", ["taskres", "clip_adapter"])
def test_validation_images_do_not_train(option, problem):
    fitted = []
    for validation in (problem.validation, problem.support):
        adapter = instantiate(composed(f"adapter={option}").adapter)(**problem.given)
        adapter.fit(problem.support, validation)
        fitted.append(adapter.state_dict())
    assert all(torch.equal(fitted[0][name], fitted[1][name]) for name in fitted[0])
