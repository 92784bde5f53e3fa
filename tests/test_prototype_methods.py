"""TPS, DPE and ECALP against slow loops in float64, written from their formulas."""

import math

import pytest
import torch
from conftest import composed, random_text
from hydra.utils import instantiate
from torch.nn.functional import normalize

from multicrop.aggregators.score import Scorer
from multicrop.methods.dpe import Dpe
from multicrop.methods.ecalp import Ecalp
from multicrop.methods.tps import Tps

CLASSES, DIM, IMAGES, SCALE = 4, 8, 40, 20.0


@pytest.fixture
def problem(generator):
    """Text of 4 classes, 40 images of 20 views about their class."""
    text = random_text(generator, classes=CLASSES, dim=DIM)
    views = normalize(text.label[torch.arange(IMAGES) % CLASSES][:, None] + 0.6 * torch.randn(IMAGES, 20, DIM, generator=generator), dim=-1)
    return text, views


def scorer(text, aggregator="global"):
    return Scorer(text, SCALE, instantiate(composed(f"aggregator={aggregator}").aggregator), 1.0)


def unit_rows(x):
    return x / x.norm(dim=-1, keepdim=True)


def nats(logits):
    p = logits.softmax(-1)
    return -(p * p.clamp_min(1e-300).log()).sum(-1)


def kept_views(views, prototypes, share):
    logits = SCALE * views @ prototypes.T
    order = sorted(range(len(views)), key=lambda k: float(nats(logits[k])))[: max(1, math.floor(len(views) * share))]
    return views[order], logits[order]


def mean_feature_score(views, features, text):
    """Logits of the mean crop against the mean description, in float64."""
    crop = unit_rows(views[1:].mean(0))
    return torch.stack([SCALE * crop @ unit_rows(features[c, 1 : len(row)].mean(0)) for c, row in enumerate(text.prompts)])


def global_score(views, features, text):
    return SCALE * features[:, 0] @ views[0]


SCORES = {"global": global_score, "mean_feature": mean_feature_score}


def tps_oracle(views, text, score, *, per_class, share=0.15, rate=0.005):
    features, out = text.features.double(), []
    for image in views.double():
        kept, _ = kept_views(image, features[:, 0], share)
        shift = torch.zeros(CLASSES if per_class else 1, DIM, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([shift], lr=rate, eps=1e-8, weight_decay=0.01)
        mean = (SCALE * kept @ unit_rows(features[:, 0] + shift).T).softmax(1).mean(0)
        loss = -(mean * mean.log()).sum()
        loss.backward()
        optimizer.step()
        out.append(score(image, unit_rows(features + shift.detach()[:, None]), text))
    return out


@pytest.mark.parametrize(("aggregator", "per_class"), [("global", True), ("global", False), ("mean_feature", True)])
def test_tps_is_adamws_first_step_by_autograd(aggregator, per_class, problem):
    text, views = problem
    method = Tps(text=text, logit_scale=SCALE, score=scorer(text, aggregator), share=0.15, per_class=per_class)
    got = method(views, scorer(text)(views))
    expected = torch.stack(tps_oracle(views, text, SCORES[aggregator], per_class=per_class))
    assert (got - scorer(text, aggregator)(views)).abs().max() > 0.05
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=0)


def dpe_oracle(views, text, score, *, pseudo_label, share=0.15, alpha=6.0, beta=5.0, rate=0.01, weight=0.2, high=0.6):
    features = text.features.double()
    w, u, queues, out = features[:, 0].clone(), 0, [[] for _ in range(CLASSES)], []

    def bank(prototypes):
        return unit_rows(features + (prototypes - features[:, 0])[:, None])

    for image in views.double():
        kept, logits = kept_views(image, unit_rows(w), share)
        f = kept.mean(0)
        if pseudo_label == "views":
            label, p = int(logits.mean(0).argmax()), logits.softmax(1).mean(0)
        else:
            text_logits = score(image, bank(w), text)
            label, p = int(text_logits.argmax()), text_logits.softmax(0)
        queues[label].append((float(-(p * p.log()).sum()), f))
        queues[label] = sorted(queues[label], key=lambda e: e[0])[:3]
        present = [c for c in range(CLASSES) if queues[c]]
        k = torch.stack([sum(key for _, key in queues[c]) / len(queues[c]) for c in present])
        rt, ri = torch.zeros_like(w).requires_grad_(), torch.zeros_like(k).requires_grad_()
        t, i = unit_rows(w + rt), unit_rows(k + ri)
        values = []
        for c in range(CLASSES):
            value = SCALE * t[c] @ f
            if c in present:
                value = value + alpha * torch.exp(-beta * (1 - i[present.index(c)] @ f))
            values.append(value)
        contrast = [-(t[present] @ i[a] / 0.01).log_softmax(0)[a] for a in range(len(present))]
        loss = nats(torch.stack(values)) + weight * sum(contrast) / len(present)
        gt, gi = torch.autograd.grad(loss, [rt, ri])
        rt, ri = (-rate * g / (g.abs() + 1e-3) for g in (gt, gi))
        moved, images = unit_rows(w + rt), unit_rows(k + ri)
        final = score(image, bank(w + rt), text)
        for place, c in enumerate(present):
            final[c] += alpha * math.exp(-beta * (1 - float(images[place] @ image[0])))
        out.append(final)
        if float(nats(final)) / math.log(CLASSES) < high:
            u += 1
            w = (u * w + moved) / (u + 1)
    return out, u


@pytest.mark.parametrize(("aggregator", "pseudo_label"), [("global", "logits"), ("global", "views"), ("mean_feature", "logits")])
def test_dpe_is_its_prototypes_in_plain_loops(aggregator, pseudo_label, problem):
    text, views = problem
    knobs = {"pseudo_label": pseudo_label, "share": 0.15, "learning_rate": 0.01, "entropy_high": 0.6}
    method = Dpe(text=text, logit_scale=SCALE, score=scorer(text, aggregator), **knobs)
    got = method(views, scorer(text)(views))
    expected, updates = dpe_oracle(views, text, SCORES[aggregator], pseudo_label=pseudo_label)
    assert 5 < updates < IMAGES and int(method.updates) == updates
    torch.testing.assert_close(got.double(), torch.stack(expected), atol=1e-3, rtol=0)  # steps near |gradient| = 1e-3 are not saturated
    assert (got.double() - torch.stack(expected)).abs().median() < 1e-5


def ecalp_oracle(views, logits, text, *, capacity, steps=3):
    t = text.label.double()
    g = t.var(0) / t.var(0).norm()
    images, texts, carried, out = [], [], [], []
    for image, own in zip(views.double(), logits.double(), strict=True):
        if len(images) == capacity:
            images, texts, carried = images[1:], texts[1:], carried[1:]
        x = unit_rows(image.mean(0))
        best = sorted(range(CLASSES), key=lambda c: -float(own[c]))[:3]
        images, texts = [*images, x], [*texts, {c: max(float(own[c]) / SCALE, 0) ** 10 for c in best}]
        nodes, node_texts = [*images, x], [*texts, texts[-1]]
        n, total = len(nodes), len(nodes) + CLASSES
        graph = torch.zeros(total, total, dtype=torch.float64)
        s = [[float(unit_rows(g * nodes[min(a, b)]) @ nodes[max(a, b)]) for b in range(n)] for a in range(n)]
        for a in range(n):
            s[a][n - 1], s[n - 1][a] = s[a][n - 2], s[n - 2][a]  # the twin is the newest image
        for a in range(n):
            for b in sorted(range(n), key=lambda b: (-s[a][b], b))[:8]:
                graph[CLASSES + a, CLASSES + b] += max(s[a][b], 0) ** 10
            for c, value in node_texts[a].items():
                graph[CLASSES + a, c] += value
        graph = graph + graph.T
        d = 1 / (graph.sum(1).sqrt() + 1e-6)
        graph = d[:, None] * graph * d
        y = torch.zeros(n, CLASSES, dtype=torch.float64)
        for a, (label, value) in enumerate(carried):
            y[a, label] = value
        for _ in range(steps):
            y = graph[CLASSES:] @ torch.cat([torch.eye(CLASSES, dtype=torch.float64), y])
        out.append(y[-1])
        carried = [(int(row.argmax()), float(row.max()) / 5) for row in y[:-1]]
    return torch.stack(out)


@pytest.mark.parametrize("capacity", [IMAGES, 12])
def test_ecalp_is_its_graph_in_plain_loops(capacity, problem):
    text, views = problem
    logits = SCALE * normalize(views.mean(1), dim=1) @ normalize(text.features.sum(1), dim=1).T
    method = Ecalp(text=text, logit_scale=SCALE, capacity=capacity, scale=1.0)
    got = method(views, logits).double()
    torch.testing.assert_close(got, ecalp_oracle(views, logits, text, capacity=capacity), atol=1e-5, rtol=1e-4)
    assert int(method.count) == capacity


def test_ecalp_needs_room_for_the_neighbours(problem):
    with pytest.raises(ValueError, match=r"method.capacity is at least method.neighbours, got 7 and 8"):
        Ecalp(text=problem[0], logit_scale=1.0, capacity=7)


def test_dpe_refuses_a_name_that_is_none(problem):
    with pytest.raises(ValueError, match=r"method.pseudo_label is logits or views, got 'x'"):
        Dpe(text=problem[0], logit_scale=1.0, score=scorer(problem[0]), pseudo_label="x")
