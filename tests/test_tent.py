"""Tent on features against a loop of its own in double precision, with the gradient by finite differences."""

import math
from functools import partial

import pytest
import torch
from conftest import composed, random_text, unit
from hydra.utils import instantiate
from refusals import refused

from multicrop import aggregators
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.methods.tent import Tent
from multicrop.text import TextBank

SCALE, RATE, GROUP = 12.0, 0.02, 3
MEAN = partial(aggregators.mean_similarity, view_set="all", text_set="all")


@pytest.fixture
def stream(generator):
    """Text of 4 classes in double precision, 8 images of 3 views, and the aggregator's logits."""
    text = random_text(generator, classes=4, dim=6)
    text = TextBank(text.features.double(), text.mask, text.prompts)
    views = unit(8, 3, 6, generator=generator).double()
    return text, views, Scorer(text, SCALE, MEAN, 1.0)


def tent(text, score, **knobs):
    return Tent(text=text, logit_scale=SCALE, score=score, **{"learning_rate": RATE, "images_per_step": GROUP} | knobs).double()


def logits_of(image, text, gamma, beta):
    rows = []
    for features, mask in zip(text.features, text.mask, strict=True):
        moved = [gamma * t + beta for t, real in zip(features, mask, strict=True) if real]
        rows.append(SCALE * sum(float(v @ t) / float(t.norm()) for v in image for t in moved) / len(image) / len(moved))
    return rows


def nats(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)


def slopes(image, text, gamma, beta):
    """d entropy / d gamma and / d beta, by central differences."""
    gradients = torch.zeros(2, len(gamma), dtype=torch.float64)
    for which in range(2):
        for d in range(len(gamma)):
            sides = []
            for sign in (1, -1):
                changed = [gamma.clone(), beta.clone()]
                changed[which][d] += sign * 1e-5
                sides.append(nats(logits_of(image, text, *changed)))
            gradients[which, d] = (sides[0] - sides[1]) / 2e-5
    return gradients


def test_is_its_loop(stream):
    text, views, score = stream
    gamma, beta = torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    expected, waiting = [], []
    for image in views:
        expected.append(logits_of(image, text, gamma, beta))
        waiting.append(slopes(image, text, gamma, beta))
        if len(waiting) == GROUP:
            mean = sum(waiting) / GROUP
            gamma, beta, waiting = gamma - RATE * mean[0], beta - RATE * mean[1], []
    method = tent(text, score)
    got = method(views, score(views))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(method.gamma, gamma, atol=1e-8, rtol=0)
    assert (got[:GROUP] - score(views[:GROUP])).abs().max() < 1e-6 < 1e-3 < (got[GROUP:] - score(views[GROUP:])).abs().max()


def test_no_rate_is_zero_shot_and_many_steps_lower_the_entropy(stream):
    text, views, score = stream
    torch.testing.assert_close(tent(text, score, learning_rate=0.0)(views, score(views)), score(views))
    method = tent(text, score, images_per_step=8)
    entropies = [aggregators.base.entropies(method(views, score(views))).mean().item() for _ in range(20)]
    assert entropies == sorted(entropies, reverse=True) and entropies[-1] < entropies[0] - 0.01


def test_resumes_between_two_steps_and_works_in_the_inference_mode_of_the_test_loop(stream):
    text, views, score = stream
    method, resumed = tent(text, score), tent(text, score)
    expected = method(views, score(views))
    method.reset()
    with torch.inference_mode():
        first = method(views[:5].clone(), score(views[:5]))
        resumed.load_state_dict(method.state_dict())
        rest = resumed(views[5:].clone(), score(views[5:]))
    torch.testing.assert_close(torch.cat([first, rest]), expected, atol=1e-12, rtol=0)  # other groups between two steps


def test_through_the_transport_plan_and_refused_where_there_is_no_gradient(stream, generator):
    text = random_text(generator, classes=4, dim=6)
    score = Scorer(text, SCALE, instantiate(without(composed("aggregator=dnd").aggregator, "facts")), 1.0)
    views = unit(4, 5, 6, generator=generator)
    method = Tent(text=text, logit_scale=SCALE, score=score, learning_rate=RATE, images_per_step=1)
    adapted = method(views, score(views))
    torch.testing.assert_close(adapted[0], score(views)[0], atol=1e-5, rtol=0)
    assert (adapted[3] - score(views)[3]).abs().max() > 1e-3
    vote = Scorer(text, SCALE, instantiate(composed("aggregator=vote").aggregator), 1.0)
    with refused("method=tent", "use another"):
        Tent(text=text, logit_scale=SCALE, score=vote, learning_rate=RATE, images_per_step=1)(views, score(views))
    with refused("images_per_step"):
        Tent(text=text, logit_scale=SCALE, score=score, learning_rate=RATE, images_per_step=0)
