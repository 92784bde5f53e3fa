"""ProLIP: its descent against a slow loop in double precision, the features before the projection, and a run on a second bank of these."""

import math

import pytest
import torch
from conftest import random_encoder, session_of, tiny_encoder
from few_shot_problem import Problem
from refusals import refused
from torch import nn
from torch.nn import functional as F

from multicrop.adapters.base import Examples
from multicrop.adapters.prolip import ProLip
from multicrop.adapters.rla import Rla
from multicrop.adapters.unprojected import unprojected, visual_projection
from multicrop.aggregators import global_view
from multicrop.runs.few_shot import build

SMALL = [f"dataset.{knob}" for knob in ("n_classes=4", "family_size=2", "test_images=2", "train_images=2", "validation_images=1")]
KNOBS = {"strength": 1.0, "penalty": None, "samples": "views", "learning_rate": 0.01, "steps": 7}
WIDTH = 11


@pytest.fixture
def wide(generator):
    """A problem whose views are those before a projection (8, 11), and whose logits are of the projected ones."""
    problem = Problem(generator, aggregator=global_view)
    projection = torch.randn(8, WIDTH, generator=generator) / 3
    for part in ("support", "validation"):
        of = getattr(problem, part)
        free = 0.3 * torch.randn(*of.views.shape[:2], WIDTH, generator=generator)
        views = F.normalize(of.views @ torch.linalg.pinv(projection).T + free, dim=-1)
        logits = problem.score(F.normalize(views @ projection.T, dim=-1))
        setattr(problem, part, Examples(views, logits, of.labels))
    return problem, projection


def loss_at(matrix, start, problem, view, penalty):
    """Cross entropy of one view per image plus the sum of squares of all entries of W - W0, entry by entry."""
    text, total = problem.score.text.features[:, 0].double(), 0.0
    for views, label in zip(problem.support.views.double(), problem.support.labels, strict=True):
        feature = matrix @ views[view]
        logits = 10 * text @ (feature / feature.norm())
        total = total + logits.exp().sum().log() - logits[label]
    distance = sum((matrix[i, j] - start[i, j]) ** 2 for i in range(8) for j in range(WIDTH))
    return total / len(problem.support.labels) + penalty * distance


def test_is_the_formula(wide):
    problem, projection = wide
    adapter = problem.fitted(ProLip, projection=projection, **KNOBS)
    start = projection.double()
    matrix, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t in range(7):
        leaf = matrix.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_at(leaf, start, problem, (t + 1) % 4, 1 / 4), leaf)  # 4 shots
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = 0.01 * (1 + math.cos(math.pi * t / 7)) / 2
        matrix = matrix - rate * (first / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.999 ** (t + 1))).sqrt() + 1e-4)
    torch.testing.assert_close(adapter.matrix.double(), matrix, atol=1e-4, rtol=0)
    text = problem.score.text.features[:, 0].double()
    features = [matrix @ views[0] for views in problem.validation.views.double()]
    wanted = torch.stack([10 * text @ (feature / feature.norm()) for feature in features])
    torch.testing.assert_close(problem.adapted(adapter).double(), wanted, atol=1e-4, rtol=0)
    assert (wanted - problem.validation.logits).abs().max() > 0.1


def test_strength_0_is_the_host_and_half_lies_halfway(wide):
    problem, projection = wide
    still = problem.fitted(ProLip, projection=projection, **{**KNOBS, "strength": 0.0})
    assert torch.equal(problem.adapted(still), problem.validation.logits)
    middle = (projection + still.matrix.detach()) / 2
    torch.testing.assert_close(still.moved(problem.support.views, 0.5), F.normalize(problem.support.views @ middle.T, dim=-1))


def test_from_the_identity_it_is_rla(generator):
    problem = Problem(generator)
    same = {**KNOBS, "samples": "images", "plan_epochs": 2}
    one, two = problem.fitted(ProLip, projection=torch.eye(8), **same), problem.fitted(Rla, **same)
    assert torch.equal(problem.adapted(one), problem.adapted(two)) and one.class_free and one.losses[-1] < one.losses[0]


def test_the_projection_takes_features_before_it_to_those_after_it(generator):
    encoder = tiny_encoder()
    before, weight = unprojected(encoder), visual_projection(encoder)
    pixels = torch.randint(0, 256, (3, 3, encoder.spec.side, encoder.spec.side), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        x, f = before.encode_images(pixels), encoder.encode_images(pixels)
    assert x.shape == (3, before.dim) and weight.shape == (encoder.dim, before.dim) and before.dim != encoder.dim
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(F.normalize(x @ weight.T, dim=-1), f, atol=1e-5, rtol=0)
    assert before.fingerprint() != encoder.fingerprint() and isinstance(encoder.model.visual_projection, nn.Linear)
    own = encoder.model.vision_model.post_layernorm.weight
    assert before.model.vision_model.post_layernorm.weight.data_ptr() == own.data_ptr()


def test_open_clips_towers_end_with_a_parameter():
    encoder = random_encoder.__wrapped__(16)
    projection = nn.Parameter(torch.rand(5, 16))  # (width, dim)
    encoder.model.vision_model.proj, encoder.model.visual_projection = projection, None
    assert torch.equal(visual_projection(encoder), projection.T)
    before = unprojected(encoder)
    assert before.model.vision_model.proj is None and before.dim == 5 and encoder.model.vision_model.proj is projection


def test_other_towers_are_refused():
    encoder = random_encoder.__wrapped__(16)  # not the shared one
    encoder.model.visual_projection = nn.Linear(4, 16)  # with a bias, the length of a feature counts
    with refused("adapter=prolip trains the matrix without a bias", "adapter=rla"):
        visual_projection(encoder)


def test_a_run_reads_a_second_bank_and_its_other_rows_are_those_of_the_first(tmp_path):
    quick = ["trainer.progress=false", f"paths.cache={tmp_path}", "crop=random_k4", "task=few_shot", "adapter.steps=3"]
    session = session_of(*SMALL, "adapter=prolip", "adapter.learning_rate=0.01", *quick)
    task = build(session, shots=1, few_shot_file=None, selection="fixed")
    bank = session.bank(session.dataset.test)
    views, labels = bank.tensors()
    indices = torch.tensor([bank[i][2] for i in range(len(bank))])
    order = torch.tensor([4, 1, 2])
    with torch.inference_mode():
        task.test_step((views[order], labels[order], indices[order]), 0)
    found, (x, _) = task.results(), task.bank.tensors()
    torch.testing.assert_close(found["aggregated"], session.scorer(views[order]))
    moved = F.normalize(x[order] @ task.adapter.matrix.T, dim=-1)
    torch.testing.assert_close(found["final"], session.scorer(moved))
    torch.testing.assert_close(F.normalize(x @ visual_projection(session.encoder).T, dim=-1), views, atol=2e-3, rtol=0)
    assert (found["final"] - found["aggregated"]).abs().max() > 1e-2


def test_a_run_without_banks_is_refused(tmp_path):
    session = session_of(*SMALL, "adapter=prolip", "task=few_shot", "bank=off", f"paths.cache={tmp_path}")
    with refused("ProLip has a bank of its own", "bank=disk"):
        build(session, shots=1, few_shot_file=None)
