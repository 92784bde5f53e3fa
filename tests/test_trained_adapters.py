"""Adapters that are trained: where they start, that the loss falls, one step written out, the plans that they hold, and a killed fit."""

import io
import itertools

import pytest
import torch
from conftest import composed, options
from few_shot_problem import Problem, cosine, die_after, pooled
from hydra.utils import instantiate
from refusals import refused
from torch.nn.functional import cross_entropy, normalize

from multicrop.adapters import descent, training
from multicrop.adapters.ape import Ape
from multicrop.adapters.ape_f import ApeF
from multicrop.adapters.clip_adapter import ClipAdapter
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.taskres import TaskRes
from multicrop.adapters.tip_adapter import TipAdapter
from multicrop.adapters.tip_adapter_f import TipAdapterF
from multicrop.config import without
from multicrop.files import read_sealed

TRAINING = {"epochs": 20, "batch_size": 256, "seed": 0}
TIP = {"alpha": 1.5, "beta": 2.5, "view_set": "all"}
TIP_F = {**TIP, "samples": "images", "learning_rate": 0.01, **TRAINING}
APE = {"similarity_weight": 0.7, "variance_weight": 0.4, "channel_share": 0.5, "text_set": "all", "view_set": "all"}
APE |= {"alpha": 1.5, "beta": 2.5, "gamma": 0.3}
APE_F = {**APE, "residual": 1.0, "learning_rate": 0.01, **TRAINING}
TASKRES = {"residual_scale": 0.5, "text_norm": 1.0, "learning_rate": 0.02, "warm_up": None, **TRAINING}
CLIP_ADAPTER = {"ratio": 0.2, "reduction": 2, "learning_rate": 0.05, **TRAINING}
TRAINED = [(TipAdapterF, TIP_F), (ApeF, APE_F), (TaskRes, TASKRES), (ClipAdapter, CLIP_ADAPTER)]
trained = pytest.mark.parametrize(("adapter", "knobs"), TRAINED, ids=lambda value: getattr(value, "__name__", ""))


@pytest.fixture
def problem(generator):
    return Problem(generator)


def transported(generator):
    """A problem whose host is D&D's transport."""
    return Problem(generator, aggregator=instantiate(composed("aggregator=optimal_transport").aggregator))


def tensors(adapter):
    return dict(adapter.state_dict())


def same(one, two):
    return all(torch.equal(value, tensors(two)[name]) for name, value in tensors(one).items())


@trained
class TestTraining:
    def test_the_loss_falls_through_transport(self, adapter, knobs, generator):
        losses = transported(generator).fitted(adapter, **knobs, **({} if adapter is TipAdapterF else {"plan_epochs": 4})).losses
        assert len(losses) == 20 and losses[-1] < 0.95 * losses[0]

    def test_same_seed_same_weights(self, adapter, knobs, problem):
        one, two, other = (problem.fitted(adapter, **{**knobs, "batch_size": 5, "seed": seed}) for seed in (3, 3, 4))
        assert same(one, two) and not same(one, other)

    def test_a_killed_fit_goes_on_to_the_same_weights(self, adapter, knobs, problem, tmp_path, monkeypatch):
        monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
        knobs = {**knobs, "batch_size": 5}
        whole = problem.fitted(adapter, **knobs)
        killed, resumed = adapter(score=problem.score, **knobs), adapter(score=problem.score, **knobs)
        killed.checkpoint = resumed.checkpoint = tmp_path / "fits" / "fit.ckpt"
        with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
            kept = die_after(7, patched)
            killed.fit(problem.support, problem.validation)
        assert all(kept)
        torch.load(io.BytesIO(read_sealed(resumed.checkpoint, "fit.ckpt")), weights_only=True)
        steps = []
        monkeypatch.setattr(descent.DescentModule, "on_train_epoch_start", counted(steps))
        resumed.fit(problem.support, problem.validation)
        assert same(whole, resumed) and whole.losses == resumed.losses and len(steps) == 13
        assert not list(tmp_path.rglob("*.ckpt*"))

    def test_nothing_is_written_where_the_run_is(self, adapter, knobs, problem, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        problem.fitted(adapter, **knobs)
        assert not list(tmp_path.iterdir())

    def test_refuses_nothing_to_do(self, adapter, knobs, problem):
        for knob in ("epochs", "batch_size"):
            with refused("training needs adapter.epochs, adapter.batch_size"):
                problem.fitted(adapter, **{**knobs, knob: 0})


def counted(steps):
    start = descent.DescentModule.on_train_epoch_start

    def started(self):
        steps.append(self.current_epoch)
        start(self)

    return started


class TestStart:
    def test_tip_adapter_f_and_ape_f_start_as_their_training_free_forms(self, problem):
        for trained_form, knobs, plain, plain_knobs in ((TipAdapterF, TIP_F, TipAdapter, TIP), (ApeF, APE_F, Ape, APE)):
            still = problem.fitted(trained_form, **{**knobs, "learning_rate": 0.0})
            expected = problem.adapted(problem.fitted(plain, **plain_knobs))
            torch.testing.assert_close(problem.adapted(still), expected, atol=1e-5, rtol=0)

    def test_taskres_and_ratio_0_are_zero_shot(self, problem):
        for still in (
            problem.fitted(TaskRes, **{**TASKRES, "learning_rate": 0.0}),
            problem.fitted(ClipAdapter, **{**CLIP_ADAPTER, "ratio": 0}),
        ):
            torch.testing.assert_close(problem.adapted(still), problem.validation.logits, atol=1e-5, rtol=0)
        first = problem.fitted(TaskRes, **TASKRES).losses[0]
        assert first == pytest.approx(cross_entropy(problem.support.logits, problem.support.labels).item(), abs=1e-4)


class TestTipAdapterF:
    def test_one_full_batch_step_is_adamw(self, problem):
        adapter = problem.fitted(TipAdapterF, **{**TIP_F, "epochs": 1})
        keys = pooled(problem.support.views).requires_grad_()
        queries, labels = pooled(problem.support.views), problem.support.labels
        values = torch.nn.functional.one_hot(labels, 3).float()
        logits = problem.support.logits + 1.5 * torch.exp(-2.5 * (1 - queries @ keys.T)) @ values
        cross_entropy(logits, labels).backward()
        step = keys.grad / (keys.grad.abs() + 1e-4)
        torch.testing.assert_close(adapter.keys, keys.detach() * (1 - 0.01 * 0.01) - 0.01 * step, atol=1e-5, rtol=0)

    def test_single_views_bring_their_own_logits_and_as_many_an_epoch_as_images(self, problem, monkeypatch):
        seen = []
        monkeypatch.setattr("multicrop.adapters.tip_adapter_f.train", lambda loss, optimizer, **knobs: seen.append(knobs) or [])
        adapter = problem.fitted(TipAdapterF, **{**TIP_F, "samples": "views"})
        queries, logits, labels = adapter._queries(problem.support)
        assert (seen[0]["n"], seen[0]["per_epoch"]) == (48, 12) and labels.tolist() == problem.support.labels.repeat_interleave(4).tolist()
        torch.testing.assert_close(logits[5], problem.score(problem.support.views[1:2, 1:2])[0])
        assert torch.equal(queries[5], problem.support.views[1, 1])

    def test_an_epoch_is_a_fresh_draw(self):
        batches = training.Shuffled(40, 12, 5, 3)
        first = torch.cat(list(batches))
        batches.epoch = 1
        assert len(first) == 12 == len(set(first.tolist())) and len(batches) == 3 and not torch.equal(first, torch.cat(list(batches)))


def test_taskres_is_a_loop(problem, generator):
    adapter, text = TaskRes(score=problem.score, **TASKRES), problem.score.text
    adapter.residual.data = torch.randn(3, 8, generator=generator)
    got = problem.adapted(adapter)
    for b, c in itertools.product(range(20), range(3)):
        moved = [text.features[c, m] + 0.5 * adapter.residual[c].detach() for m in range(len(text.prompts[c]))]
        expected = 10 * cosine(problem.validation.views[b].sum(0), sum(prompt / prompt.norm() for prompt in moved))
        assert got[b, c].item() == pytest.approx(expected, abs=1e-4)
    assert problem.score.text is text


class TestClipAdapter:
    def test_is_a_loop(self, problem):
        adapter, views = ClipAdapter(score=problem.score, **CLIP_ADAPTER), problem.validation.views
        moved = adapter.moved(views, 0.2)
        for b, k in itertools.product(range(20), range(4)):
            bottleneck = (adapter.up @ (adapter.down @ views[b, k]).clamp(min=0)).clamp(min=0)
            expected = 0.2 * bottleneck + 0.8 * views[b, k]
            torch.testing.assert_close(moved[b, k], expected / expected.norm(), atol=1e-5, rtol=0)
        torch.testing.assert_close(problem.adapted(adapter), problem.score(moved).detach())

    def test_the_norm_of_the_features_does_not_matter(self, problem):
        adapter, views = ClipAdapter(score=problem.score, **CLIP_ADAPTER), problem.validation.views
        torch.testing.assert_close(adapter.moved(10 * views, 0.2), adapter.moved(views, 0.2), atol=1e-5, rtol=0)

    def test_refuses_no_channels(self, problem):
        with refused("adapter.reduction in 1-8", "got 0.2 and 9"):
            ClipAdapter(score=problem.score, **{**CLIP_ADAPTER, "reduction": 9})


def test_ape_f_adds_its_residual_to_keys_and_prompts(problem):
    adapter, plain = problem.fitted(ApeF, **APE_F), problem.fitted(Ape, **APE)
    step = adapter.step[:, adapter.channels]
    assert adapter.step.count_nonzero() == step.count_nonzero() > 0
    torch.testing.assert_close(adapter.keys, normalize(plain.keys + step[plain.labels], dim=-1), atol=1e-5, rtol=0)
    text = problem.score.text
    moved = normalize(text.features + adapter.step[:, None], dim=-1) * text.mask[..., None]
    got = problem.adapted(adapter)
    for b, c in itertools.product(range(5), range(3)):
        query = problem.validation.views[b].sum(0)
        expected = 10 * cosine(query, moved[c].sum(0))
        for n in (problem.support.labels == c).nonzero()[:, 0]:
            near = 1 - cosine(query[adapter.channels], adapter.keys[n])
            expected += 1.5 * float(adapter.key_weights[n] * torch.exp(0.3 * adapter.divergence[n] - 2.5 * near))
        assert got[b, c].item() == pytest.approx(expected, abs=1e-3)


class TestHeldPlans:
    def test_solved_anew_it_is_the_aggregator_and_its_gradient(self, generator):
        problem = transported(generator)
        rows, views = torch.tensor([3, 8, 5]), problem.support.views[[3, 8, 5]].clone().requires_grad_()
        for every in (1, 4):
            held = HeldPlans(problem.score, 12, every)(rows, views, problem.score.text)
            direct = problem.score(views)
            torch.testing.assert_close(held, direct, atol=1e-4, rtol=0)
            got, expected = (torch.autograd.grad(x.square().sum(), views)[0] for x in (held, direct))
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)

    def test_held_it_is_never_above_exact_transport_and_solved_anew_in_time(self, generator):
        problem = Problem(
            generator, aggregator=instantiate(without(composed("aggregator=dnd_exact", "aggregator.prune=false").aggregator, "facts"))
        )
        held, rows, views = HeldPlans(problem.score, 12, 3), torch.arange(12), problem.support.views
        held(rows, views, problem.score.text)
        moved = normalize(views + 0.3 * torch.randn(views.shape, generator=generator), dim=-1)
        plans = held.plans.clone()
        second = held(rows, moved, problem.score.text)
        assert torch.equal(plans, held.plans) and (second <= problem.score(moved) + 1e-4).all()
        assert not torch.allclose(second, problem.score(moved))
        held(rows, moved, problem.score.text)
        torch.testing.assert_close(held(rows, moved, problem.score.text), problem.score(moved), atol=1e-4, rtol=0)

    def test_other_aggregators_and_large_supports_are_left_alone(self, problem, generator, monkeypatch):
        rows, views = torch.arange(12), problem.support.views
        held = HeldPlans(problem.score, 12, 5)
        torch.testing.assert_close(held(rows, views, problem.score.text), problem.support.logits)
        monkeypatch.setattr("multicrop.adapters.plans.HELD_BYTES", 10)
        large = transported(generator)
        held = HeldPlans(large.score, 12, 5)
        torch.testing.assert_close(held(rows, views, large.score.text), large.score(views))
        assert held.plans is None
        with refused("adapter.plan_epochs is 1", "got 0"):
            HeldPlans(problem.score, 12, 0)


TRAINED = [o for o in options("adapter") if "plan_epochs" in composed(f"adapter={o}").adapter and o != "coop"]  # which wants an encoder


@pytest.mark.parametrize("option", TRAINED)
def test_validation_images_do_not_train(option, problem):
    fitted = []
    for validation in (problem.validation, problem.support):
        knobs = composed(f"adapter={option}").adapter
        make = instantiate(knobs, **{"epochs" if "epochs" in knobs else "steps": 3})
        projection = {"projection": torch.eye(problem.support.views.shape[-1])} if make.func.reads_unprojected else {}
        adapter = make(score=problem.score, **projection)
        adapter.fit(problem.support, validation)
        fitted.append(adapter)
    assert same(*fitted)
