"""DOTA, OGA, OnZeta, StatA and TDA with several views against slow loops in float64, written from their formulas."""

import math

import pytest
import torch
from conftest import composed, random_text
from torch.nn.functional import normalize

from multicrop.methods.dota import Dota
from multicrop.methods.oga import Oga, inverse
from multicrop.methods.onzeta import OnZeta
from multicrop.methods.stata import StatA
from multicrop.methods.tda import Tda
from multicrop.text import TextBank

POSITIVE = {"size": 3, "alpha": 2.0, "beta": 5.0}
NEGATIVE = {"size": 2, "alpha": 0.117, "beta": 1.0, "entropy_low": 0.2885, "entropy_high": 0.7213, "mask_low": 0.03}
CLASSES, DIM, IMAGES = 4, 8, 60


@pytest.fixture(params=[12.0, 100.0])
def scale(request):
    """Logit scales; at 100 the texts are close together, as those of CLIP are."""
    return request.param


@pytest.fixture
def problem(generator, scale):
    """Text of 4 classes, 60 images of 20 views about their class, and the logits of an aggregator of its own."""
    text = random_text(generator, classes=CLASSES, dim=DIM)
    views = normalize(text.label[torch.arange(IMAGES) % CLASSES][:, None] + 0.6 * torch.randn(IMAGES, 20, DIM, generator=generator), dim=-1)
    if scale == 100.0:
        near = normalize(torch.ones(DIM) + 0.25 * text.features, dim=-1) * text.mask[..., None]
        text = TextBank(near, text.mask, text.prompts)
    logits = scale * normalize(views[:, 1:].mean(1), dim=-1) @ normalize(text.features.sum(1), dim=-1).T
    return text, views, logits


def close(got, expected, atol=1e-4):
    torch.testing.assert_close(got.double(), torch.stack(expected), atol=atol, rtol=1e-5)


def nats(p):
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)


def unit_mean(views):
    mean = views.double().mean(0)
    return mean / mean.norm()


def kept_views(views, text, scale, share):
    """The most confident views in float64 and their logits."""
    logits = [scale * text.label.double() @ v.double() for v in views]
    order = sorted(range(len(views)), key=lambda k: nats(logits[k].softmax(0)))[: max(1, math.floor(len(views) * share))]
    return [views[k].double() for k in order], [logits[k] for k in order]


def tda_oracle(views, text, scale):
    positive, negative, out = {c: [] for c in range(CLASSES)}, {c: [] for c in range(CLASSES)}, []

    def keep(queue, size, entry):
        queue.append(entry)
        queue.sort(key=lambda e: e[0])
        del queue[size:]

    for image in views:
        kept, logits = kept_views(image, text, scale, 0.15)
        f, mean_logits = sum(kept) / len(kept), sum(logits) / len(logits)
        p = sum(row.softmax(0) for row in logits) / len(logits)
        label, h = int(mean_logits.argmax()), nats(p)
        keep(positive[label], 3, (h, f))
        if 0.2885 < h / math.log(CLASSES) < 0.7213:
            keep(negative[label], 2, (h, f, [float(0.03 < x < 1) for x in p.tolist()]))
        final = mean_logits.clone()
        for c in range(CLASSES):
            final[c] += sum(2.0 * math.exp(-5.0 * (1 - float(f @ key))) for _, key in positive[c])
            for _, key, mask in negative[c]:
                final -= 0.117 * math.exp(-1.0 * (1 - float(f @ key))) * torch.tensor(mask, dtype=torch.float64)
        out.append(final)
    return out, negative


def test_tda_with_several_views_is_its_authors(problem, scale):
    text, views, logits = problem
    knobs = {"positive": POSITIVE, "negative": NEGATIVE, "view_set": "global", "pseudo_label": "views", "share": 0.15}
    expected, negative = tda_oracle(views, text, scale)
    assert sum(map(len, negative.values())) > 2
    close(Tda(text=text, logit_scale=scale, **knobs)(views, logits), expected)


def test_tda_with_several_views_and_one_view_is_tda(problem, scale):
    text, views, _ = problem
    views, common = views[:, :1], {"text": text, "logit_scale": scale, "positive": POSITIVE, "negative": NEGATIVE, "view_set": "all"}
    logits = scale * views[:, 0] @ text.label.T
    torch.testing.assert_close(Tda(**common, pseudo_label="views")(views, logits), Tda(**common)(views, logits), atol=1e-4, rtol=0)


def dota_oracle(views, logits, text, scale, *, rows, sigma=0.002, epsilon=1e-4, eta=0.3, rho=0.02):
    eye = torch.eye(DIM, dtype=torch.float64)
    mu, n = torch.full((CLASSES, DIM), 0.001, dtype=torch.float64), [1.0] * CLASSES
    covariance, precision, out = [sigma * eye for _ in range(CLASSES)], eye / sigma, []
    for image, text_logits in zip(views, logits.double(), strict=True):
        if rows == "key":
            x, q = [unit_mean(image)], [text_logits.softmax(0)]
        else:
            x, own = kept_views(image, text, scale, 0.15)
            q = [row.softmax(0) for row in own]
        f = sum(x) / len(x)
        weight = min(rho * sum(n) / CLASSES / len(x), eta)
        d = torch.stack([m @ precision @ f - 0.5 * m @ precision @ m for m in mu])
        out.append(text_logits + weight * d)
        for c in range(CLASSES):
            gained = sum(float(qj[c]) for qj in q)
            new = n[c] * covariance[c] + sum(float(qj[c]) * torch.outer(xj - mu[c], xj - mu[c]) for xj, qj in zip(x, q, strict=True))
            covariance[c] = new / (n[c] + gained)
            mu[c] = (n[c] * mu[c] + sum(float(qj[c]) * xj for xj, qj in zip(x, q, strict=True))) / (n[c] + gained)
            n[c] += gained
        precision = torch.linalg.inv((1 - epsilon) * sum(covariance) / CLASSES + epsilon * eye)
    return out


@pytest.mark.parametrize(("rows", "eta", "rho"), [("key", 0.3, 0.02), ("views", 0.2, 0.1)])
def test_dota_is_its_gaussians_in_plain_loops(rows, eta, rho, problem, scale):
    text, views, logits = problem
    expected = dota_oracle(views, logits, text, scale, rows=rows, eta=eta, rho=rho)
    got = Dota(text=text, logit_scale=scale, rows=rows, share=0.15, eta=eta, rho=rho)(views, logits)
    assert (got - logits).abs().max() > 1
    close(got, expected)


def oga_oracle(views, logits, text, *, size, tau, mean):
    mu, out = text.label.double().clone(), []
    memory = [[(math.log(CLASSES), None)] * size for _ in range(CLASSES)]
    precision, entered = DIM * torch.eye(DIM, dtype=torch.float64), 0
    for image, text_logits in zip(views, logits.double(), strict=True):
        f, y = unit_mean(image), text_logits.softmax(0)
        h, c = -sum(p * math.log(p + 1e-9) for p in y.tolist()), int(text_logits.argmax())
        slot = max(range(size), key=lambda j: (memory[c][j][0], -j))
        if h < memory[c][slot][0]:
            memory[c][slot], entered = (h, f), entered + 1
            filled = [[x for _, x in queue if x is not None] for queue in memory]
            for k in range(CLASSES):
                if len(filled[k]) >= 2:
                    mu[k] = sum(filled[k]) / (size if mean == "slots" else len(filled[k]))
            if max(map(len, filled)) > 2:
                r = torch.stack([x - mu[k] for k in range(CLASSES) for x in filled[k]])
                n, r = len(r), r - r.mean(0)
                m = r.T @ r / (n - 1)
                shrunk = (n - 1) * m + m.trace() * torch.eye(DIM, dtype=torch.float64)
                precision = DIM * torch.linalg.inv(shrunk) if n <= 4 * DIM else torch.linalg.pinv(m)
        d = torch.stack([-0.5 * (f - m) @ precision @ (f - m) for m in mu])
        z = y * (tau * d).softmax(0)
        out.append((z / z.sum()).log())
    return out, entered, sum(x is not None for queue in memory for _, x in queue)


@pytest.mark.parametrize(("size", "mean"), [(8, "slots"), (8, "filled"), (12, "slots")])
def test_oga_is_its_cache_and_gaussian_in_plain_loops(size, mean, problem, scale):
    text, views, logits = problem
    views, logits = (views.repeat(2, 1, 1), logits.repeat(2, 1)) if size == 12 else (views, logits)
    expected, entered, cached = oga_oracle(views, logits, text, size=size, tau=0.05, mean=mean)
    assert entered >= cached > 2 * CLASSES and (size == 8 or cached > 4 * DIM)
    got = Oga(text=text, logit_scale=scale, size=size, mean=mean)(views, logits)
    finite = torch.stack(expected).isfinite()
    torch.testing.assert_close(got.double()[finite], torch.stack(expected)[finite], atol=1e-4, rtol=1e-5)


def test_the_inverse_of_a_singular_matrix_is_the_pseudo_inverse(generator):
    rows = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    singular = rows.T @ rows
    torch.testing.assert_close(inverse(singular), torch.linalg.pinv(singular), atol=1e-9, rtol=1e-9)
    regular = singular + torch.eye(6)
    torch.testing.assert_close(inverse(regular), torch.linalg.inv(regular))


def onzeta_oracle(views, logits, text, *, proxy_rate, dual_rate, balance, weight, length):
    rho, w, out = torch.zeros(CLASSES, dtype=torch.float64), text.label.double().clone(), []
    for i, (image, text_logits) in enumerate(zip(views, logits.double(), strict=True), start=1):
        f = unit_mean(image)
        q = (text_logits + rho).softmax(0)
        p = torch.stack([row @ f / 0.04 for row in w]).softmax(0)
        b = weight * math.sqrt(i / length) if length else weight
        out.append((b * p + (1 - b) * q).log())
        rho = torch.stack([(rho[c] - dual_rate * CLASSES / math.sqrt(i) * (q[c] - balance / CLASSES)).clamp_min(0) for c in range(CLASSES)])
        for c in range(CLASSES):
            moved = w[c] - proxy_rate / (math.sqrt(i) * 0.04) * (p[c] - q[c]) * f
            w[c] = moved / moved.norm()
    return out, rho


@pytest.mark.parametrize("length", [IMAGES, None])
def test_onzeta_is_its_two_online_steps_in_plain_loops(length, problem, scale):
    text, views, logits = problem
    knobs = {"proxy_rate": 0.02, "dual_rate": 0.075, "balance": 0.9, "weight": 0.8}
    expected, rho = onzeta_oracle(views, logits, text, length=length, **knobs)
    assert (rho > 0).any()
    method = OnZeta(text=text, logit_scale=scale, stream_length=length, **knobs)
    close(method(views, logits), expected)
    assert not torch.allclose(method.prototypes, text.label, atol=0.01)


def stata_oracle(images, y, t, *, counts, alpha=1.0, strength=1.0):
    n = len(images)
    z, mu = y.clone(), t.clone()
    sigma0 = sum(y[i, c] * (images[i] - t[c]) ** 2 for i in range(n) for c in range(CLASSES)) / n
    sigma = [sigma0.clone() for _ in range(CLASSES)]
    a = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in sorted((j for j in range(n) if j != i), key=lambda j: -float(images[i] @ images[j]))[:3]:
            a[i, j] = images[i] @ images[j]
    for rounds in range(11):
        g = torch.zeros(n, CLASSES, dtype=torch.float64)
        for c in range(CLASSES):
            g[:, c] = -0.5 * ((images - mu[c]) ** 2 / sigma[c]).sum(1) - 0.5 * sigma[c].log().sum()
        for _ in range(5):
            q = g + strength * 50 / 6 * ((a.T + a) @ z)
            z = y * ((q - q.amax(1, keepdim=True)) / 50).exp()
            z = z / z.sum(1, keepdim=True)
        if rounds == 10:
            return z.log()
        for c in range(CLASSES):
            size = float((z.argmax(1) == c).sum()) if counts == "hard" else float(z[:, c].sum())
            beta, total = size / (alpha + size), z[:, c].sum()
            m = (z[:, c, None] * images).sum(0) / total
            mu[c] = beta * m / m.norm() + (1 - beta) * t[c]
            mu[c] = mu[c] / mu[c].norm()
            own = (z[:, c, None] * (images - mu[c]) ** 2).sum(0) / total
            sigma[c] = beta * own + (1 - beta) * (sigma0 + (t[c] - mu[c]) ** 2)
    raise AssertionError


@pytest.mark.parametrize(("counts", "alpha", "strength"), [("hard", 1.0, 1.0), ("soft", 3.0, 0.5)])
def test_stata_is_its_mixture_in_plain_loops(counts, alpha, strength, problem, scale):
    text, views, logits = problem
    views, logits = views[:40], logits[:40] / 4
    images = torch.stack([unit_mean(image) for image in views])
    expected = stata_oracle(images, logits.double().softmax(1), text.label.double(), counts=counts, alpha=alpha, strength=strength)
    method = StatA(text=text, logit_scale=scale, counts=counts, anchor_weight=alpha, neighbour_weight=strength)
    got = method(views, logits)
    assert (got.exp() - logits.softmax(1)).abs().max() > 0.1
    torch.testing.assert_close(got.double().exp(), expected.exp(), atol=1e-4, rtol=0)


def test_stata_gives_small_batches_and_classes_without_images_their_text(problem, scale):
    text, views, logits = problem
    method = StatA(text=text, logit_scale=scale)
    assert torch.equal(method(views[:3], logits[:3]), logits[:3].log_softmax(1))
    far = logits.clone()
    far[:, 0] = -1e4  # no image has any of class 0
    assert method(views, far)[:, 1:].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "knob", "message"),
    [
        (Dota, {"rows": "x"}, "method.rows is key or views, got 'x'"),
        (Oga, {"mean": "x"}, "method.mean is slots or filled, got 'x'"),
        (StatA, {"counts": "x"}, "method.counts is hard or soft, got 'x'"),
        (
            Tda,
            {"pseudo_label": "x", "positive": POSITIVE, "negative": NEGATIVE, "view_set": "all"},
            "method.pseudo_label is logits or views",
        ),
    ],
)
def test_a_name_that_is_none_is_refused(kind, knob, message, generator):
    with pytest.raises(ValueError, match=message):
        kind(text=random_text(generator), logit_scale=1.0, **knob)


@pytest.mark.parametrize(
    ("option", "dataset", "expected"),
    [
        ("dota_authors", "imagenet_r", {"eta": 0.3, "rho": 0.0025, "epsilon": 1e-4}),
        ("dota_authors", "eurosat", {"eta": 3.0, "rho": 0.05, "epsilon": 1e-4}),
        ("dota_authors", "food101", {"eta": 0.1, "rho": 0.01, "epsilon": 4e-5}),
        ("dota_authors", "scenes", {"eta": 0.3, "rho": 0.02, "epsilon": 1e-4}),
        ("dpe_authors", "stanford_cars", {"alpha": 3.0, "beta": 7.0, "learning_rate": 1e-4, "alignment_weight": 1.5}),
        ("dpe_authors", "imagenet", {"alpha": 6.0, "beta": 5.0, "learning_rate": 6e-4, "alignment_weight": 0.5}),
        ("dpe_authors", "scenes", {"alpha": 6.0, "beta": 5.0, "learning_rate": 6e-4, "alignment_weight": 0.2}),
    ],
)
def test_the_authors_values_follow_the_data_set(option, dataset, expected):
    chosen = composed("task=tta", f"method={option}", f"dataset={dataset}").method
    assert {knob: chosen[knob] for knob in expected} == expected
