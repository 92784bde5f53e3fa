"""LaZSL against a slow loop written from its formula, with the entropic plan of POT."""

import numpy as np
import ot
import pytest
import torch
from conftest import random_text, unit
from torch.nn.functional import normalize

from multicrop import aggregators
from multicrop.aggregators import as_aggregator

SCALE = 20.0
TIGHT = {"tolerance": 1e-6, "max_iterations": 5000}


@pytest.fixture
def problem(generator):
    """Ragged text of 5 classes, and 4 images whose crops are more or less like the whole image."""
    whole = unit(4, 1, 16, generator=generator)
    crops = normalize(whole + 0.4 * torch.randn(4, 9, 16, generator=generator), dim=-1)
    return torch.cat([whole, crops], 1), random_text(generator)


def oracle(views, text, *, alpha, gamma, epsilon):
    rows = []
    for image in views.double():
        whole, crops = image[0], image[1:]
        likeness = [float(whole @ v) for v in crops]
        kept = [v for v, r in zip(crops, likeness, strict=True) if r >= np.mean(likeness) + gamma] or [crops[int(np.argmax(likeness))]]
        scores = []
        for c, prompts in enumerate(text.prompts):
            t = text.features[c, 1 : len(prompts)].double()
            x = np.array([[(1 - alpha) * float(whole @ d) + alpha * float(v @ d) for d in t] for v in kept])
            a, b = np.full(len(kept), 1 / len(kept)), np.full(len(t), 1 / len(t))
            scores.append(SCALE * (ot.sinkhorn(a, b, 1 - x, epsilon, numItermax=20000, stopThr=1e-13) * x).sum())
        rows.append(scores)
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("alpha", "gamma", "epsilon"), [(0.8, 0.0, 0.1), (1.0, 0.0, 0.02), (0.3, 0.05, 0.1), (0.8, 1.0, 0.1), (0.8, -2.0, 0.05)]
)
def test_lazsl_is_its_blended_transport(problem, alpha, gamma, epsilon):
    views, text = problem
    logits = aggregators.lazsl(views, text, SCALE, alpha=alpha, gamma=gamma, epsilon=epsilon, **TIGHT)
    torch.testing.assert_close(logits.double(), oracle(views, text, alpha=alpha, gamma=gamma, epsilon=epsilon), atol=1e-4, rtol=0)


def test_the_plan_is_the_one_behind_the_logits_and_spares_the_global_view(problem):
    views, text = problem
    made = as_aggregator(aggregators.lazsl)
    whole = as_aggregator(made)
    knobs = {"alpha": 0.8, "gamma": 0.0, "epsilon": 0.1, "text_set": "descriptions", **TIGHT}
    plan = aggregators.lazsl_plan(views, text, **knobs)
    logits = whole(views, text, SCALE)
    torch.testing.assert_close(SCALE * (plan.mass * plan.similarities).sum((2, 3)) / plan.mass.sum((2, 3)), logits, atol=2e-3, rtol=0)
    assert (plan.mass[:, :, 0] == 0).all() and 0 < int((plan.mass[0, 0].sum(1) > 0).sum()) < 9
    some = aggregators.lazsl_plan(views, text, classes=[3, 1], **knobs)
    torch.testing.assert_close(some.mass, plan.mass[:, [3, 1]], atol=1e-6, rtol=1e-4)


def test_small_blocks_and_one_view_change_nothing(problem):
    views, text = problem
    whole = aggregators.lazsl(views, text, SCALE, **TIGHT)
    torch.testing.assert_close(aggregators.lazsl(views, text, SCALE, max_elements=40, **TIGHT), whole, atol=1e-4, rtol=0)
    alone = aggregators.mean_similarity(views[:, :1], text, SCALE, view_set="all", text_set="descriptions")
    torch.testing.assert_close(aggregators.lazsl(views[:, :1], text, SCALE, **TIGHT), alone, atol=1e-4, rtol=0)


def test_gradients_flow_through_crops_and_texts(problem):
    views, text = problem
    views = views.clone().requires_grad_()
    aggregators.lazsl(views, text, SCALE).sum().backward()
    assert (views.grad[:, 0].abs().sum() > 0) and (views.grad[:, 1:].abs().sum() > 0)
