"""Test-time methods against plain loops over a stream of 60 images, written from the formulas in lists and float64."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import composed, options, random_encoder, random_text
from hydra.utils import instantiate
from torch.nn.functional import normalize

from multicrop import aggregators
from multicrop.aggregators.score import Scorer
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.methods import dmn
from multicrop.methods.base import Method
from multicrop.methods.bca import Bca
from multicrop.methods.boost import BoostAdapter
from multicrop.methods.dmn import Dmn
from multicrop.methods.episodic import Episodic
from multicrop.methods.none import Unchanged
from multicrop.methods.tda import Tda
from multicrop.runs.injectables import inject
from multicrop.text import TextBank

SCALE = 12.0
POSITIVE = {"size": 3, "alpha": 2.0, "beta": 5.0}
NEGATIVE = {"size": 2, "alpha": 0.117, "beta": 1.0, "entropy_low": 0.2885, "entropy_high": 0.7213, "mask_low": 0.03}
MTA = {"text_set": "label", "neighbours": 0.3, "affinity_weight": 4.0, "temperature": 0.2}
BCA = {"embedding": {"threshold": 0.6, "count": 2}, "prior": {"threshold": 0.8, "count": 3}}
DMN = {"share": 0.4, "size": 4, "beta": 5.5}


@pytest.fixture
def stream(generator):
    """Text of 4 classes, 60 images of 6 views about their class, and text logits of their own."""
    text = random_text(generator, classes=4, dim=8)
    views = normalize(text.label[torch.arange(60) % 4][:, None] + 0.5 * torch.randn(60, 6, 8, generator=generator), dim=-1)
    return text, views, 2 * torch.randn(60, 4, generator=generator)


def dot(a, b):
    return float(a.double() @ b.double())


def softmax(scores):
    weights = [math.exp(x - max(scores)) for x in scores]
    return [w / sum(weights) for w in weights]


def nats(probability):
    return -sum(p * math.log(p) for p in probability if p > 0)


def mean_of(vectors):
    total = sum(v.double() for v in vectors)
    return total / total.norm()


def argmax(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def scores_of(view, text):
    return [SCALE * dot(view, t) for t in text.label]


def confident_first(views, text):
    return sorted(range(len(views)), key=lambda k: (nats(softmax(scores_of(views[k], text))), k))


def oracle_view_set(views, view_set):
    return {"global": views[:1], "all": views, "crops": views[1:]}[view_set]


def close(got, expected, tolerance=1e-4):
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


def test_none_gives_back_what_came(stream):
    text, views, logits = stream
    assert Unchanged(text=text, logit_scale=SCALE)(views, logits) is logits


def zero(text, share):
    """ZERO as conf/method/zero.yaml builds it."""
    vote = partial(aggregators.vote, keep=share, view_set="all", text_set="label")
    return Episodic(text=text, logit_scale=10.0, aggregator=vote)


def axes_text():
    """Three classes along the axes: the scores of a view are its own coordinates."""
    return TextBank(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool), [["a"], ["b"], ["c"]])


@pytest.mark.parametrize(
    ("views", "share", "winner"),
    [
        ([[9, 1, 0], [1, 9, 0], [0, 4, 3]], 0.7, 1),  # the discarded view is for class 1
        ([[9, 1, 0], [1, 9, 0], [4, 0, 3]], 0.7, 0),
        ([[9, 1, 0], [1, 9, 0], [1, 0, 4], [0, 3, 2]], 0.5, 1),  # the first discarded view is for class 2, the next for class 1
        ([[9, 1, 0], [1, 9, 0], [2, 1, 6]], 0.7, 0),  # none is for a tied class: class 0 has the larger logit
        ([[9, 1, 0], [1, 9, 0], [1, 2, 6]], 0.7, 1),
    ],
)
def test_zero_breaks_ties_by_the_views_that_did_not_vote(views, share, winner):
    views = normalize(torch.tensor([views], dtype=torch.float32), dim=-1)
    logits = torch.tensor([[0.0, 1.0, 5.0]])
    adapted = zero(axes_text(), share)(views, logits)
    assert adapted.argmax().item() == winner


def test_one_view_is_zero_shot(stream):
    text, views, logits = stream
    votes = zero(text, 0.3)(views[:, :1], logits)
    mta = Episodic(text=text, logit_scale=SCALE, aggregator=partial(aggregators.mta, **MTA))(views[:, :1], logits)
    assert torch.equal(votes.argmax(1), (views[:, 0] @ text.label.T).argmax(1))
    torch.testing.assert_close(mta, SCALE * views[:, 0] @ text.label.T)


def mta_oracle(views, start, text):
    n, square = len(views), lambda a, b: float((a.double() - b.double()).square().sum())
    count = max(1, int(0.3 * (n - 1)))
    bandwidth = []
    for k in range(n):
        nearest = sorted(square(views[k], views[j]) for j in range(n) if j != k)[:count]
        bandwidth.append(sum(nearest) / count / 2)
    probability = [softmax(scores_of(view, text)) for view in views]
    affinity = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in probability] for p in probability]
    kernel = lambda m: [math.exp(-square(views[k], m) / (2 * bandwidth[k])) for k in range(n)]  # noqa: E731
    y, mode = [1 / n] * n, start.double()
    for _ in range(5):
        density = kernel(mode)
        for _ in range(5):
            y = softmax([(density[k] + 4 * sum(affinity[k][j] * y[j] for j in range(n))) / 0.2 for k in range(n)])
        for _ in range(5):
            density_now = kernel(mode)
            mode = mean_of([y[k] * density_now[k] * views[k].double() for k in range(n)])
    return scores_of(mode, text)


@pytest.mark.parametrize("n_views", [6, 2])
def test_mta_is_its_mean_shift(n_views, stream):
    text, views, logits = stream
    views = views[:, :n_views]
    got = Episodic(text=text, logit_scale=SCALE, aggregator=partial(aggregators.mta, **MTA))(views, logits)
    close(got, [mta_oracle(v, v[0], text) for v in views], 1e-3)


def test_mta_leaves_an_outlier_out():
    views = normalize(torch.tensor([[[5.0, 1, 0], [5, 0, 1], [6, 1, 1], [5, 1, 1], [0, 0, 5]]]), dim=-1)
    adapted = Episodic(text=axes_text(), logit_scale=10.0, aggregator=partial(aggregators.mta, **MTA))(views, torch.zeros(1, 3))
    assert adapted[0, 2] < 10 * normalize(views.mean(1), dim=-1)[0, 2] - 1


def keep_best(queue, size, item):
    """A queue sorted by entropy that drops its worst entry: an equal one that came later never replaces."""
    queue.append(item)
    queue.sort(key=lambda entry: entry[0])
    del queue[size:]


def dmn_oracle(views, logits, text, *, view_set, pseudo_label, weight, size, beta, share):
    memory, out = {c: [] for c in range(4)}, []
    for image, scores in zip(views, logits.double(), strict=True):
        key = mean_of(oracle_view_set(image, view_set))
        p = softmax(scores.tolist())
        source = p
        if pseudo_label == "views":
            kept = confident_first(image, text)[: max(1, math.floor(len(image) * share))]
            rows = [softmax(scores_of(image[k], text)) for k in kept]
            source = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        keep_best(memory[argmax(source)], size, (nats(source), key))
        read = []
        for c in range(4):
            slots = [text.label[c].double(), *(entry[1] for entry in memory[c])]
            read.append(mean_of([math.exp(-beta * (1 - dot(slot, key))) * slot for slot in slots]))
        q = softmax([SCALE * dot(m, key) for m in read])
        out.append([math.log((p[c] + weight * q[c]) / (1 + weight)) for c in range(4)])
    return out, memory


@pytest.mark.parametrize(("view_set", "pseudo_label"), [("all", "logits"), ("crops", "logits"), ("global", "views")])
def test_dmn_is_its_memory_in_plain_loops(view_set, pseudo_label, stream):
    text, views, logits = stream
    knobs = {"view_set": view_set, "pseudo_label": pseudo_label, "weight": 0.7, **DMN}
    expected, memory = dmn_oracle(views, logits, text, **knobs)
    assert all(len(queue) == 4 for queue in memory.values())
    close(Dmn(text=text, logit_scale=SCALE, **knobs)(views, logits), expected)


def test_dmn_without_weight_is_zero_shot_and_an_empty_class_is_its_label_prompt(stream):
    text, views, logits = stream
    make = lambda weight: Dmn(text=text, logit_scale=SCALE, view_set="all", pseudo_label="logits", weight=weight, **DMN)  # noqa: E731
    torch.testing.assert_close(make(0.0)(views, logits), logits.log_softmax(1))
    own, memory = int(logits[0].argmax()), make(1e30)(views[:1], logits[:1])[0]
    expected = SCALE * text.label @ normalize(views[0].mean(0), dim=-1)
    others = [c for c in range(4) if c != own]
    torch.testing.assert_close(memory[others].diff(), expected[others].diff(), atol=1e-4, rtol=0)
    assert (memory - memory[others[0]] - expected + expected[others[0]])[own] > 1e-2


def test_dmn_reads_the_same_however_the_stream_is_grouped_and_after_a_reset(stream, monkeypatch):
    text, views, logits = stream
    method = Dmn(text=text, logit_scale=SCALE, view_set="all", pseudo_label="logits", weight=0.7, **DMN)
    expected = method(views, logits)
    method.reset()
    monkeypatch.setattr(dmn, "GROUP", 7)
    torch.testing.assert_close(method(views, logits), expected, atol=1e-5, rtol=0)
    method.reset()
    one_by_one = torch.cat([method(views[i : i + 1], logits[i : i + 1]) for i in range(60)])
    torch.testing.assert_close(one_by_one, expected, atol=1e-5, rtol=0)


def bca_oracle(views, logits, text):
    t0 = [t.double() for t in text.label]
    mu, prior = list(t0), [[float(m == y) for y in range(4)] for m in range(4)]
    counts, prior_counts, out = [2] * 4, [3] * 4, []
    for image, scores in zip(views, logits.double(), strict=True):
        f = mean_of(image)
        q = softmax([float(scores[m]) + SCALE * float(f @ (mu[m] - t0[m])) for m in range(4)])
        posterior = [sum(q[m] * prior[m][y] for m in range(4)) for y in range(4)]
        out.append([math.log(p) for p in posterior])
        best = argmax(posterior)
        if posterior[best] > 0.6:
            mu[best] = mean_of([counts[best] * mu[best], f])
            counts[best] += 1
        if posterior[best] > 0.8:
            prior[best] = [(prior_counts[best] * prior[best][y] + posterior[y]) / (prior_counts[best] + 1) for y in range(4)]
            prior_counts[best] += 1
    return out, counts, prior_counts


def test_bca_is_bayes_in_plain_loops(stream):
    text, views, logits = stream
    expected, counts, prior_counts = bca_oracle(views, logits, text)
    assert sum(count > 4 for count in counts) >= 3 and sum(counts) - 8 > sum(prior_counts) - 12 > 4
    method = Bca(text=text, logit_scale=SCALE, view_set="all", **BCA)
    close(method(views, logits), expected)
    close(method.embedding_counts, counts)
    close(method.priors.sum(1), [1.0] * 4)


def test_bca_that_saw_nothing_is_zero_shot(stream):
    text, views, logits = stream
    torch.testing.assert_close(Bca(text=text, logit_scale=SCALE, view_set="all", **BCA)(views[:1], logits[:1]), logits[:1].log_softmax(1))
    shy = {name: {"threshold": 1.0, "count": 1} for name in BCA}
    torch.testing.assert_close(Bca(text=text, logit_scale=SCALE, view_set="all", **shy)(views, logits), logits.log_softmax(1))


def test_bca_on_the_logits_of_its_key_is_the_softmax_of_its_embeddings(stream):
    text, views, _ = stream
    method = Bca(text=text, logit_scale=SCALE, view_set="global", **BCA)
    method.prior["threshold"] = 1.0
    logits = SCALE * views[:, 0] @ text.label.T
    method(views[:59], logits[:59])
    expected = (SCALE * method.embeddings @ views[59, 0]).log_softmax(0)
    assert not torch.allclose(method.embeddings, text.label)
    torch.testing.assert_close(method(views[59:], logits[59:])[0], expected, atol=1e-4, rtol=0)


def boost_oracle(views, logits, text, *, view_set, boosters, share, extra):
    positive, negative, out = {c: [] for c in range(4)}, {c: [] for c in range(4)}, []
    for image, scores in zip(views, logits.double(), strict=True):
        key, p = mean_of(oracle_view_set(image, view_set)), softmax(scores.tolist())
        keep_best(positive[argmax(p)], 3, (nats(p), key))
        if 0.2885 < nats(p) / math.log(4) < 0.7213:
            keep_best(negative[argmax(p)], 2, (nats(p), key, [0.03 < x < 1 for x in p]))
        copy, own = {c: list(queue) for c, queue in positive.items()}, oracle_view_set(image, boosters)
        for k in confident_first(own, text)[: max(1, math.floor(len(own) * share))]:
            alone = softmax(scores_of(own[k], text))
            keep_best(copy[argmax(alone)], 3 + extra, (nats(alone), own[k]))
        result = scores.tolist()
        for c in range(4):
            result[c] += sum(2.0 * math.exp(-5.0 * (1 - dot(entry[1], key))) for entry in copy[c])
            for _, other, counts in negative[c]:
                for y in range(4):
                    result[y] -= counts[y] * 0.117 * math.exp(-1.0 * (1 - dot(other, key)))
        out.append(result)
    return out


@pytest.mark.parametrize(
    ("view_set", "boosters", "share", "extra"), [("all", "all", 0.1, 3), ("global", "crops", 0.5, 0), ("all", "all", 1.0, 1)]
)
def test_boost_is_tda_with_its_own_views_in_plain_loops(view_set, boosters, share, extra, stream):
    text, views, logits = stream
    knobs = {"view_set": view_set, "boosters": boosters, "share": share, "extra": extra}
    method = BoostAdapter(text=text, logit_scale=SCALE, positive=POSITIVE, negative=NEGATIVE, **knobs)
    close(method(views, logits), boost_oracle(views, logits, text, **knobs))


def test_boosting_leaves_the_cache_as_tda_leaves_it(stream):
    text, views, logits = stream
    common = {"text": text, "logit_scale": SCALE, "positive": POSITIVE, "negative": NEGATIVE, "view_set": "all"}
    boost, tda = BoostAdapter(**common, boosters="all", share=0.5, extra=3), Tda(**common)
    assert not torch.equal(boost(views, logits), tda(views, logits))
    for name, value in tda.state_dict().items():
        assert torch.equal(value, boost.state_dict()[name])


def test_tdas_bare_mean_key_is_the_authors_average(stream):
    """renormalise=false in plain loops: positive and negative affinities of keys shorter than 1."""
    text, views, logits = stream
    never = NEGATIVE | {"entropy_low": 2.0}
    method = Tda(text=text, logit_scale=SCALE, positive=POSITIVE, negative=never, view_set="all", renormalise=False)
    queues, expected = {c: [] for c in range(4)}, []
    for image, scores in zip(views, logits.double(), strict=True):
        bare_mean, p = sum(v.double() for v in image) / len(image), softmax(scores.tolist())
        keep_best(queues[argmax(p)], 3, (nats(p), bare_mean))
        near = [sum(2.0 * math.exp(-5.0 * (1 - dot(entry[1], bare_mean))) for entry in queues[c]) for c in range(4)]
        expected.append([float(scores[c]) + near[c] for c in range(4)])
    close(method(views, logits), expected)


@pytest.mark.parametrize("kind", [Tda, BoostAdapter])
def test_a_cache_that_counts_for_nothing_is_zero_shot(kind, stream):
    text, views, logits = stream
    knobs = {"boosters": "all", "share": 0.5, "extra": 3} if kind is BoostAdapter else {}
    none = {"positive": POSITIVE | {"alpha": 0.0}, "negative": NEGATIVE | {"alpha": 0.0}, "view_set": "all"}
    assert torch.equal(kind(text=text, logit_scale=SCALE, **none, **knobs)(views, logits), logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda text: zero(text, 0.0), "above 0"),
        (lambda text: Dmn(text=text, logit_scale=1.0, view_set="all", pseudo_label="x", weight=1.0, **DMN), "logits or views"),
        (lambda text: Dmn(text=text, logit_scale=1.0, view_set="all", pseudo_label="logits", weight=-1.0, **DMN), "0 or more"),
    ],
)
def test_a_knob_that_makes_no_sense_is_named(make, message, stream):
    text, views, logits = stream
    with pytest.raises(ValueError, match=message):
        make(text)(views, logits)


@pytest.mark.parametrize("option", options("method"))
class TestDeclarations:
    """What a method declares is what it does."""

    def made(self, option, generator):
        encoder = random_encoder(16)
        prompts = [["a photo of a dog.", "it barks"], ["a photo of a cat.", "it purrs"], ["a photo of a rose.", "it grows"]]
        text = encoder.encode_prompts(prompts)
        score = Scorer(text, 20.0, instantiate(composed("aggregator=mean_feature").aggregator), 1.0)
        views = normalize(text.label[torch.arange(24) % 3][:, None] + 0.3 * torch.randn(24, 6, 16, generator=generator), dim=-1)
        node = composed(f"method={option}").method
        offered = SimpleNamespace(text=text, logit_scale=20.0, score=score, encoder=encoder)
        return inject(instantiate(node), offered), views, score(views)

    def test_episodic_methods_have_no_state_and_ignore_the_order_of_the_stream(self, option, generator):
        method, views, logits = self.made(option, generator)
        forwards = method(views, logits)
        method.reset()
        backwards = method(views.flip(0), logits.flip(0)).flip(0)
        stateless = method.episodic or method.transductive
        assert stateless == (not method.state_dict()) == (method.state_bytes == 0) and not (method.episodic and method.transductive)
        assert stateless == torch.allclose(forwards, backwards, atol=1e-4)

    def test_gradients_are_used_where_they_are_declared(self, option, generator, monkeypatch):
        method, views, logits = self.made(option, generator)
        calls, grad = [], torch.autograd.grad
        monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or grad(*args, **kwargs))
        method(views, logits)
        assert method.uses_gradients == bool(calls)

    def test_the_text_tower_is_used_where_it_is_declared(self, option, generator, monkeypatch):
        made, init = [], PromptTower.__init__
        monkeypatch.setattr(PromptTower, "__init__", lambda self, *args, **kwargs: made.append(1) or init(self, *args, **kwargs))
        assert self.made(option, generator)[0].needs_text_tower == bool(made)


def test_a_method_without_forward_cannot_be_made(generator):
    with pytest.raises(TypeError, match="forward"):
        Method(text=random_text(generator), logit_scale=1.0)


def test_an_image_as_confident_as_the_worst_entry_of_a_full_queue_does_not_replace_it():
    text, logits = axes_text(), torch.tensor([[3.0, 1.0, 0.0]])
    first, later = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 1.0, 0.0]]])
    positive, negative = POSITIVE | {"size": 1}, NEGATIVE | {"size": 1, "entropy_low": 0.0, "entropy_high": 1.0}
    method = Tda(text=text, logit_scale=1.0, positive=positive, negative=negative, view_set="all")
    method(first, logits)
    tied = method(later, logits)
    near = [2.0 * math.exp(-5.0), 0.117 * math.exp(-1.0)]  # the affinity to the first image, and not to itself
    close(tied, [[3.0 + near[0] - near[1], 1.0 - near[1], -near[1]]])
    surer = method(later, logits + torch.tensor([[0.1, 0.0, 0.0]]))
    close(surer, [[3.1 + 2.0 - 0.117, 1.0 - 0.117, -0.117]])


def uncertain_only(**bounds):
    """TDA without its positive cache, whose negative cache takes any entropy above 0."""
    negative = NEGATIVE | {"entropy_low": 0.0, "entropy_high": 2.0} | bounds
    return Tda(text=axes_text(), logit_scale=1.0, positive=POSITIVE | {"alpha": 0.0}, negative=negative, view_set="all")


@pytest.mark.parametrize("bound", ["entropy_low", "entropy_high", "mask_low"])
def test_an_image_at_a_bound_counts_against_no_class(bound):
    view, logits = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.zeros(1, 3)
    probability = logits.softmax(1)
    share = float(torch.special.entr(probability).sum()) / math.log(3)
    assert (uncertain_only()(view, logits) < 0).all()
    at = float(probability[0, 0]) if bound == "mask_low" else share
    assert torch.equal(uncertain_only(**{bound: at})(view, logits), logits)


def test_an_image_counts_against_no_class_whose_probability_rounds_to_1():
    view, logits = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[20.0, 0.0, 0.0]])
    assert float(logits.softmax(1)[0, 0]) == 1.0 and torch.equal(uncertain_only()(view, logits), logits)
    surely = torch.tensor([[10.0, 0.0, 0.0]])
    assert (uncertain_only()(view, surely) - surely)[0].tolist() == pytest.approx([-0.117, 0.0, 0.0], abs=1e-5)
