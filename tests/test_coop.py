"""CoOp against its gradient step written out, and what its training must do."""

import copy
from functools import partial

import pytest
import torch
from conftest import composed, options, random_encoder, random_text, unit
from few_shot_problem import die_after
from hydra.utils import instantiate
from refusals import refused
from torch.nn.functional import normalize

from multicrop import aggregators
from multicrop.adapters import coop, descent
from multicrop.adapters.base import Examples
from multicrop.adapters.coop import CoOp, published_epochs
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.text import TextBank
from multicrop.transport import dispatch

WORDS = "a photo of a"
PROMPTS = [["a photo of a dog.", "a photo of a dog, which barks"], ["a photo of a cat."], ["a photo of a rose.", "a photo of a red rose"]]
MEAN = partial(aggregators.mean_similarity, view_set="all", text_set="all")
KNOBS = {"words": WORDS, "start": "words", "n_tokens": 5, "class_specific": False, "learning_rate": 0.01}
TRAINING = {"epochs": 3, "batch_size": 4, "seed": 0}


class Problem:
    """12 support and 9 validation images of 3 classes about prompts of the random encoder."""

    def __init__(self, generator, aggregator=MEAN, dtype=torch.float32, prompts=PROMPTS):
        self.encoder = copy.deepcopy(random_encoder()).to(dtype)
        tower = PromptTower(self.encoder, prompts, lead=WORDS)
        features, mask = tower.features(tower.words()[None], tower.all)[0], self.encoder.encode_prompts(prompts).mask
        self.text = TextBank(features, mask, prompts)
        self.score = Scorer(self.text, 20.0, aggregator, 1.0)
        self.support, self.validation = (self._examples(n, generator, dtype) for n in (12, 9))

    def _examples(self, n, generator, dtype):
        labels = torch.arange(n) % 3
        centres = unit(3, 16, generator=torch.Generator().manual_seed(1))[labels][:, None]
        views = normalize(centres + 0.1 * torch.randn(n, 4, 16, generator=generator), dim=-1).to(dtype)
        return Examples(views, self.score(views), labels)

    def adapter(self, **knobs):
        return CoOp(text=self.text, logit_scale=20.0, score=self.score, encoder=self.encoder, **KNOBS | TRAINING | knobs)

    def fitted(self, **knobs):
        adapter = self.adapter(**knobs)
        adapter.fit(self.support, self.validation)
        return adapter


@pytest.fixture
def problem(generator):
    return Problem(generator)


@pytest.mark.parametrize("class_specific", [False, True])
def test_starts_from_zero_shot_and_its_loss_falls(class_specific, problem):
    adapter = problem.adapter(class_specific=class_specific)
    torch.testing.assert_close(adapter(problem.support.views, problem.support.logits), problem.support.logits, atol=1e-4, rtol=0)
    adapter = problem.fitted(class_specific=class_specific, epochs=20)
    assert adapter.context.shape == ((3 if class_specific else 1), 4, 32)
    assert len(adapter.losses) == 20 and adapter.losses[-1] < adapter.losses[0] - 0.1
    assert adapter.selection["how"] == "fixed" and adapter.selection["chosen"]["epoch"] == 20
    assert all(p.grad is None for p in problem.encoder.parameters())


@pytest.mark.parametrize("class_specific", [False, True])
def test_its_steps_are_sgd_on_the_cross_entropy(class_specific, generator):
    """Three epochs of one full batch by hand, the loss in plain loops."""
    problem = Problem(generator, dtype=torch.float64)
    adapter = problem.fitted(class_specific=class_specific, epochs=3, batch_size=12)
    tower, velocity = PromptTower(problem.encoder, PROMPTS, lead=WORDS), 0.0
    start = tower.words().expand((3 if class_specific else 1), -1, -1).clone()
    context = start
    for rate in (1e-5, 0.01, 0.005):  # the warm-up epoch, then cosine decay over two
        context.requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(context, tower, problem, class_specific), [context])
        context = context.detach()
        velocity = 0.9 * velocity + gradient + 5e-4 * context
        context = context - rate * velocity
    torch.testing.assert_close(adapter.context.detach(), context, atol=1e-8, rtol=0)
    assert (context - start).abs().max() > 1e-4


def loss_of(context, tower, problem, class_specific):
    features = tower.own_features(context, tower.all) if class_specific else tower.features(context, tower.all)[0]
    total = 0.0
    for views, label in zip(problem.support.views, problem.support.labels, strict=True):
        logits = [20.0 * sum((views @ features[c, m]).mean() for m in range(len(row))) / len(row) for c, row in enumerate(PROMPTS)]
        total = total + torch.stack(logits).logsumexp(0) - logits[label]
    return total / len(problem.support.labels)


def test_same_seed_same_weights_and_another_seed_another_start(problem):
    one, two, other = (problem.fitted(start="random", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.context, two.context) and not torch.equal(one.context, other.context)
    assert problem.adapter(start="random", seed=3).context.shape == (1, 5, 32)
    assert problem.adapter(start="random", n_tokens=16).context.std().item() == pytest.approx(0.02, rel=0.1)


def test_validation_images_do_not_train(problem):
    one, other = problem.fitted(), problem.adapter()
    other.fit(problem.support, problem.support)
    assert torch.equal(one.context, other.context) and one.losses == other.losses


def test_descriptions_get_the_context_and_the_transport_plan_scores_them(generator):
    problem = Problem(generator, instantiate(without(composed("aggregator=dnd", "aggregator.text_set=all").aggregator, "facts")))
    adapter = problem.fitted(epochs=12)
    assert adapter.losses[-1] < adapter.losses[0]
    moved = (adapter.learned.features - problem.text.features).norm(dim=-1)
    assert (moved[problem.text.mask] > 1e-4).all() and (moved[~problem.text.mask] == 0).all()


def test_epochs_follow_the_shots_and_knobs_that_mean_nothing_are_refused(problem, monkeypatch):
    assert [published_epochs(shots) for shots in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]
    monkeypatch.setattr(coop, "published_epochs", lambda shots: shots + 1)
    assert len(problem.fitted(epochs=None).losses) == 12 // 3 + 1
    with refused("adapter.start", "random"):
        problem.adapter(start="zero")
    with refused("learning_rate"):
        problem.adapter(learning_rate=0.0)


def test_a_killed_fit_goes_on_to_the_same_weights(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    whole = problem.fitted(epochs=7)
    killed, resumed = problem.adapter(epochs=7), problem.adapter(epochs=7)
    killed.checkpoint = resumed.checkpoint = tmp_path / "fit.ckpt"
    with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
        die_after(4, patched)
        killed.fit(problem.support, problem.validation)
    steps = []
    monkeypatch.setattr(resumed, "prompts", lambda: steps.append(1) or CoOp.prompts(resumed))
    resumed.fit(problem.support, problem.validation)
    assert torch.equal(whole.context, resumed.context) and whole.losses == resumed.losses
    assert len(steps) == 3 * 3 + 1 and not resumed.checkpoint.exists()


LABELS = {"aggregator=global", *(f"aggregator={o}" for o in options("aggregator") if "text_set" in composed(f"aggregator={o}").aggregator)}


@pytest.mark.parametrize("aggregator", sorted(LABELS))
def test_where_only_label_prompts_are_read_only_they_go_through_the_tower(aggregator, generator):
    """The shorter text bank gives the aggregator's own logits, and CoOp starts from them."""
    chosen = without(
        composed(aggregator, *([] if aggregator == "aggregator=global" else ["aggregator.text_set=label"])).aggregator, "facts"
    )
    if chosen.get("prune"):
        chosen.prune = False
    problem = Problem(generator, instantiate(chosen))
    text, views = random_text(generator), unit(6, 4, 16, generator=generator)
    whole = Scorer(text, 20.0, problem.score.aggregator, 0.5)(views)
    torch.testing.assert_close(Scorer(text.select("label"), 20.0, problem.score.aggregator, 0.5)(views), whole, atol=1e-5, rtol=0)
    for class_specific in (False, True):
        adapter = problem.adapter(class_specific=class_specific)
        assert adapter.learned.features.shape[:2] == (3, 1)
        torch.testing.assert_close(adapter(problem.support.views, problem.support.logits), problem.support.logits, atol=1e-3, rtol=0)


def test_plans_are_held_between_visits(generator, monkeypatch):
    problem, solved = (
        Problem(generator, instantiate(without(composed("aggregator=dnd", "aggregator.text_set=all").aggregator, "facts"))),
        [],
    )
    solve = dispatch.sinkhorn
    monkeypatch.setattr(dispatch, "sinkhorn", lambda cost, *masses, **knobs: solved.append(len(cost)) or solve(cost, *masses, **knobs))
    losses = problem.fitted(epochs=8, plan_epochs=4, batch_size=12).losses
    assert solved == [12, 12, 9] and losses[-1] < losses[0]


@pytest.mark.parametrize("aggregator", [o for o in options("aggregator") if not composed(f"aggregator={o}").aggregator.get("prune")])
def test_every_aggregator_hosts_it_or_it_says_why_not(aggregator, generator):
    described = [[row[0], f"{row[0]} with a tail", "a wet nose"] for row in PROMPTS]
    problem = Problem(generator, instantiate(without(composed(f"aggregator={aggregator}").aggregator, "facts")), prompts=described)
    adapter = problem.adapter(epochs=2)
    if aggregator == "vote":
        with refused("logits with a gradient", "vote counts votes"):
            adapter.fit(problem.support, problem.validation)
        return
    adapter.fit(problem.support, problem.validation)
    with torch.no_grad():
        logits = adapter(problem.validation.views, problem.validation.logits)
    assert logits.shape == (9, 3) and logits.isfinite().all() and adapter.learned.mask.any()
