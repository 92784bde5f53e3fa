"""Every aggregator against a slow loop written from its formula, the marginals and solvers against their own, and the edges."""

import math
import warnings
from collections import Counter
from functools import partial

import numpy as np
import ot
import pytest
import torch
from conftest import composed, options, random_text, unit
from hydra.utils import instantiate
from PIL import Image

from multicrop import aggregators, transport
from multicrop.aggregators import TransportPlan, aggregator, as_aggregator, marginals, pools
from multicrop.aggregators.base import blocks, chunks, classes_of
from multicrop.aggregators.logits_cache import LogitsCache
from multicrop.aggregators.score import Scorer, reads_labels_alone, with_aggregator, with_text
from multicrop.config import without
from multicrop.show.explain.explanation import explain
from multicrop.text import TextBank

SCALE = 9.0
ALL = {"view_set": "all", "text_set": "all"}


def dot(a, b):
    return float((a.double() * b.double()).sum())


def softmax(values):
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def entropy_of(logits):
    return -sum(p * math.log(p) for p in softmax(logits) if p > 0)


def prompts_of(text, c, start=1):
    return [text.features[c, m] for m in range(start, len(text.prompts[c]))]


def view_logits(view, text, start, scale=SCALE):
    return [scale * np.mean([dot(view, t) for t in prompts_of(text, c, start)]) for c in range(len(text.prompts))]


@pytest.fixture
def problem(generator):
    """Ragged text of 5 classes, and 3 images with 11 views."""
    return unit(3, 11, 16, generator=generator), random_text(generator)


def assert_logits(logits, loop, atol=1e-4):
    expected = torch.tensor([[loop(b, c) for c in range(logits.shape[1])] for b in range(logits.shape[0])])
    torch.testing.assert_close(logits, expected.float(), atol=atol, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_mean_similarity(problem, scale):
    views, text = problem
    logits = aggregators.mean_similarity(views, text, scale, view_set="crops", text_set="descriptions")
    assert_logits(logits, lambda b, c: scale * np.mean([dot(v, t) for v in views[b, 1:] for t in prompts_of(text, c)]))


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_topk(problem, k):
    views, text = problem
    logits = aggregators.topk(views, text, SCALE, k=k, view_set="crops", text_set="descriptions")

    def loop(b, c):
        pairs = sorted((dot(v, t) for v in views[b, 1:] for t in prompts_of(text, c)), reverse=True)
        return SCALE * np.mean(pairs[:k])

    assert_logits(logits, loop)


def test_topk_of_all_pairs_is_the_mean_and_of_none_is_refused(problem):
    views, text = problem
    sets = {"view_set": "all", "text_set": "all"}
    everything = aggregators.topk(views, text, SCALE, k=10**6, **sets)
    torch.testing.assert_close(everything, aggregators.mean_similarity(views, text, SCALE, **sets))
    with pytest.raises(ValueError, match=r"aggregator\.k"):
        aggregators.topk(views, text, SCALE, k=0, **sets)


def zero_loop(views, text, keep, scale):
    """ZERO's rule in lists: the votes of the kept views, and the winner after the tie-break."""
    logits = [view_logits(v, text, 0, scale) for v in views]
    order = sorted(range(len(views)), key=lambda k: entropy_of(logits[k]))
    n_kept = max(1, math.floor(len(views) * keep))
    votes = Counter(int(np.argmax(logits[k])) for k in order[:n_kept])
    tied = [c for c in votes if votes[c] == max(votes.values())]
    if len(tied) == 1:
        return votes, n_kept, tied[0], False
    discarded = order[n_kept:]
    for k in discarded:
        if np.argmax(logits[k]) in tied:
            return votes, n_kept, int(np.argmax(logits[k])), True
    best = logits[(discarded or order)[0]]
    return votes, n_kept, max(tied, key=lambda c: best[c]), True


@pytest.mark.parametrize(("keep", "n_views", "scale"), [(0.3, 20, 9.0), (0.3, 13, 1.0), (0.5, 8, 100.0), (0.3, 1, 9.0), (0.9, 3, 9.0)])
def test_vote(generator, keep, n_views, scale):
    text, views = random_text(generator, classes=6), unit(60, n_views, 16, generator=generator)
    shares = aggregators.vote(views, text, scale, keep=keep, view_set="all", text_set="all").exp()
    ties = 0
    for b in range(60):
        votes, n_kept, winner, tie = zero_loop(views[b], text, keep, scale)
        ties += tie
        expected = [(votes[c] + 0.5 * (tie and c == winner)) / n_kept for c in range(6)]
        assert shares[b].tolist() == pytest.approx(expected, abs=1e-5)
        assert int(shares[b].argmax()) == winner
    assert ties > 5 or n_views < 8


def axis_text(classes):
    """Class c is the c-th axis."""
    return TextBank(torch.eye(classes)[:, None], torch.ones(classes, 1, dtype=torch.bool), [[f"class {c}"] for c in range(classes)])


@pytest.mark.parametrize(
    ("discarded", "winner"),
    [
        ([[0.0, 0.5, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]], 1),  # the first discarded view names a tied class
        ([[0.1, 0.2, 0.5, 0.0], [0.2, 0.45, 0.0, 0.0]], 1),  # the first names an outsider, the second a tied class
        ([[0.1, 0.0, 0.5, 0.0], [0.0, 0.1, 0.0, 0.3]], 0),  # none names a tied class: the larger logit in the first
    ],
)
def test_vote_ties_by_the_discarded_views(discarded, winner):
    views = torch.tensor([[[0.9, 0.0, 0.0, 0.0], [0.0, 0.8, 0.0, 0.0], *discarded]])
    logits = aggregators.vote(views, axis_text(4), 20.0, keep=0.5, view_set="all", text_set="label")
    assert int(logits.argmax()) == winner


def test_vote_ties_with_nothing_discarded_go_to_the_most_confident_view():
    views = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.9, 0.0]]])
    assert int(aggregators.vote(views, axis_text(3), 20.0, keep=1.0, view_set="all", text_set="label").argmax()) == 1


@pytest.mark.parametrize("keep", [0.0, 1.1, -0.3])
def test_vote_refuses_a_share_that_is_none(problem, keep):
    with pytest.raises(ValueError, match=r"aggregator\.keep"):
        aggregators.vote(*problem, 20.0, keep=keep, view_set="all", text_set="label")


@pytest.mark.parametrize(
    ("n_views", "share", "kept"), [(64, 0.1, 6), (64, 0.3, 19), (1, 0.3, 1), (3, 0.3, 1), (100, 0.29, 29), (10, 1.0, 10)]
)
def test_kept_views(n_views, share, kept):
    assert aggregators.confidence.kept_views(n_views, share) == kept


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_entropy(problem, scale):
    views, text = problem
    logits = aggregators.entropy(views, text, scale, temperature=0.5, view_set="all", text_set="all")

    def loop(b, c):
        rows = [view_logits(v, text, 0, scale) for v in views[b]]
        weights = softmax([-entropy_of(row) / 0.5 for row in rows])
        return sum(w * row[c] for w, row in zip(weights, rows, strict=True))

    assert_logits(logits, loop, atol=1e-3)


@pytest.mark.parametrize("renormalise", [True, False])
def test_wca(problem, renormalise):
    views, text = problem
    knobs = {"log_image_scale": 4.0, "log_text_scale": 2.0, "text_set": "descriptions"}
    logits = aggregators.wca(views, text, SCALE, renormalise=renormalise, **knobs)

    def loop(b, c):
        crops, prompts = views[b, 1:].double(), [t.double() for t in prompts_of(text, c)]
        w = softmax([math.exp(4) * dot(views[b, 0], v) for v in crops])
        u = softmax([math.exp(2) * dot(text.features[c, 0], t) for t in prompts])
        if not renormalise:
            return SCALE * sum(wk * um * dot(v, t) for wk, v in zip(w, crops, strict=True) for um, t in zip(u, prompts, strict=True))
        image = sum(wk * v for wk, v in zip(w, crops, strict=True))
        label = sum(um * t for um, t in zip(u, prompts, strict=True))
        return SCALE * dot(image, label) / float(image.norm() * label.norm())

    assert_logits(logits, loop)


@pytest.mark.parametrize("start", [0, 1])
def test_soft_match(problem, start):
    views, text = problem
    sets = {"view_set": ("all", "crops")[start], "text_set": ("all", "descriptions")[start]}
    logits = aggregators.soft_match(views, text, 123.0, temperature=0.03, **sets)

    def loop(b, c):
        total = 0.0
        for v in views[b, start:]:
            pairs = [(d, dot(v, t) / 0.03) for d in range(5) for t in prompts_of(text, d, start)]
            attention = softmax([x for _, x in pairs])
            total += sum(a * x for a, (d, x) in zip(attention, pairs, strict=True) if d == c)
        return total

    assert_logits(logits, loop, atol=2e-3)


def mta_loop(views, prototypes, scale, n_rounds=5, n_steps=5):
    """The authors' loop for one image in float64, early stops included; below 5 views one neighbour, where theirs is NaN."""
    views, prototypes = views.double(), prototypes.double()
    count = len(views)
    near = max(1, int(0.3 * (count - 1)))
    h = [np.sqrt(0.5 * np.mean(sorted(float((v - w).norm()) ** 2 for w in views)[1 : near + 1])) for v in views]
    p = [softmax([scale * dot(v, t) for t in prototypes]) for v in views]
    affinity = np.array([[np.dot(a, b) for b in p] for a in p])
    y, mode = np.full(count, 1 / count), views[0]
    density = lambda m: np.array([math.exp(-(float((v - m).norm()) ** 2) / (2 * hk**2)) for v, hk in zip(views, h, strict=True)])  # noqa: E731
    for _ in range(n_rounds):
        kernel = density(mode)
        for _ in range(n_steps):
            old, y = y, np.array(softmax(list((kernel + 4 * affinity @ y) / 0.2)))
            if np.linalg.norm(old - y) < 1e-6:
                break
        for _ in range(n_steps):
            old, weight = mode, density(mode) * y
            mode = sum(float(w) * v for w, v in zip(weight, views, strict=True))
            mode = mode / mode.norm()
            if float((old - mode).norm()) < 1e-6:
                break
    return scale * prototypes @ mode


@pytest.mark.parametrize(("n_views", "scale"), [(2, 9.0), (4, 9.0), (8, 9.0), (16, 1.0), (16, 100.0)])
def test_mta(generator, n_views, scale):
    text, centre = random_text(generator), unit(4, 1, 16, generator=generator)
    views = torch.nn.functional.normalize(centre + 0.2 * torch.randn(4, n_views, 16, generator=generator), dim=-1)
    knobs = {"text_set": "all", "neighbours": 0.3, "affinity_weight": 4.0, "temperature": 0.2}
    logits = aggregators.mta(views, text, scale, **knobs)
    means = [sum(prompts_of(text, c, 0)) for c in range(5)]
    prototypes = torch.stack([m / m.norm() for m in means])
    for b in range(4):
        torch.testing.assert_close(logits[b].double(), mta_loop(views[b], prototypes, scale), atol=2e-5 * scale, rtol=0)


def test_mta_leaves_an_outlier_behind(generator):
    centre = unit(1, 1, 16, generator=generator)
    cluster = torch.nn.functional.normalize(centre + 0.02 * torch.randn(1, 12, 16, generator=generator), dim=-1)
    outlier = unit(1, 1, 16, generator=generator)
    text = TextBank(torch.cat([centre, outlier], 0), torch.ones(2, 1, dtype=torch.bool), [["cluster"], ["outlier"]])
    mta = instantiate(composed("aggregator=mta").aggregator)
    torch.testing.assert_close(mta(torch.cat([cluster, outlier], 1), text, 1.0), mta(cluster, text, 1.0), atol=1e-2, rtol=0)


@pytest.mark.parametrize("knob", ["temperature", "rounds", "steps"])
def test_mta_refuses_a_knob_that_is_not_above_0(problem, knob):
    knobs = {"text_set": "all", "neighbours": 0.3, "affinity_weight": 4.0, "temperature": 0.2}
    with pytest.raises(ValueError, match=rf"aggregator\.{knob} must be above 0, got 0"):
        aggregators.mta(*problem, SCALE, **{**knobs, knob: 0.0 if knob == "temperature" else 0})


# marginals


def awt_entropies(views, text, scale, start):
    """The authors' way for one image: for every prompt the whole vector of class logits, with one entry replaced."""
    means, table = view_logits(views[0], text, start, scale), []
    for c in range(len(text.prompts)):
        rows = [[*means[:c], scale * dot(views[0], t), *means[c + 1 :]] for t in prompts_of(text, c, start)]
        table.append([entropy_of(row) for row in rows])
    return table


@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0, 300.0])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_prompt_entropies_in_constant_time_are_the_naive_ones(generator, scale, classes):
    text, views = random_text(generator, classes=classes), unit(20, 3, 16, generator=generator)
    views[:5, 0] = text.features[0, 1]  # a lead of many nats
    logits = scale * aggregators.similarities(views[:, :1], text).squeeze(2)
    got = marginals.prompt_entropies(logits, text)
    for b in range(20):
        for c, row in enumerate(awt_entropies(views[b], text, scale, 0)):
            assert got[b, c, : len(row)].tolist() == pytest.approx(row, abs=1e-4)


@pytest.mark.parametrize("lead", [5.0, 15.0, 20.0, 60.0])
def test_prompt_entropies_survive_a_class_far_ahead(lead):
    logits = torch.tensor([[[lead, lead], [0.5, -0.5], [0.0, 1.0], [0.3, 0.2]]])
    logits[0, 0, 1] = -lead  # the class in front falls behind when its other prompt takes its place
    logits[0, 0, 0] = 3 * lead
    text = TextBank(torch.zeros(4, 2, 1), torch.ones(4, 2, dtype=torch.bool), [["a", "b"]] * 4)
    got, means = marginals.prompt_entropies(logits, text), logits[0].double().mean(1)
    for c in range(4):
        for m in range(2):
            replaced = means.clone()
            replaced[c] = logits[0, c, m]
            assert float(got[0, c, m]) == pytest.approx(entropy_of(replaced.tolist()), abs=2e-5)


def view_marginal_loop(name, views, text, scale):
    """One image; crops and descriptions alone."""
    crops = views[1:]
    if name == "uniform":
        return [1 / len(crops)] * len(crops)
    if name == "similarity":
        return softmax([math.exp(4) * dot(views[0], v) for v in crops])
    if name == "entropy":
        return softmax([-entropy_of(view_logits(v, text, 1, scale)) / 0.5 for v in crops])
    return softmax([max(dot(v, t) for c in range(5) for t in prompts_of(text, c)) / 0.03 for v in crops])


def prompt_marginal_loop(name, views, text, c, scale):
    prompts = prompts_of(text, c)
    if name == "uniform":
        return [1 / len(prompts)] * len(prompts)
    if name == "similarity":
        return softmax([math.exp(2) * dot(text.features[c, 0], t) for t in prompts])
    if name == "entropy":
        return softmax([-h / 0.5 for h in awt_entropies(views, text, scale, 1)[c]])
    return softmax([max(dot(v, t) for v in views[1:]) / 0.03 for t in prompts])


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
@pytest.mark.parametrize("prompt", marginals.MARGINALS)
@pytest.mark.parametrize("view", marginals.MARGINALS)
def test_transport_takes_each_marginal_on_each_side(generator, view, prompt, solver):
    text, views = random_text(generator), unit(2, 6, 16, generator=generator)
    knobs = {"epsilon": 0.1, "tolerance": 1e-6, "max_iterations": 10000, "view_set": "crops", "text_set": "descriptions"}
    logits = aggregators.optimal_transport(views, text, SCALE, solver=solver, view_marginal=view, prompt_marginal=prompt, **knobs)

    def loop(b, c):
        a = np.array(view_marginal_loop(view, views[b], text, SCALE))
        mass = np.array(prompt_marginal_loop(prompt, views[b], text, c, SCALE))
        cost = np.array([[1 - dot(v, t) for t in prompts_of(text, c)] for v in views[b, 1:]])
        if solver == "exact":
            return SCALE * (1 - ot.emd2(a, mass, cost))
        return SCALE * (1 - (ot.sinkhorn(a, mass, cost, 0.1, method="sinkhorn_log", numItermax=20000, stopThr=1e-12) * cost).sum())

    assert_logits(logits, loop, atol=1e-3)


def test_a_temperature_overrides_the_sources(problem):
    views, text = problem
    cold = marginals.view_marginal(views, text, SCALE, name="best_match", temperature=1e-3, view_set="crops")
    hot = marginals.view_marginal(views, text, SCALE, name="best_match", temperature=1e3, view_set="crops")
    assert (cold.amax(1) > 0.9).all()
    torch.testing.assert_close(hot, torch.full_like(hot, 0.1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"view_marginal": "uniforn"}, r"aggregator\.view_marginal is one of uniform, similarity, entropy, best_match"),
        ({"prompt_marginal": "none"}, r"aggregator\.prompt_marginal is one of"),
        ({"view_marginal": "similarity", "view_set": "all"}, r"aggregator\.view_set=crops"),
        ({"view_marginal": "entropy", "view_temperature": 0.0}, r"aggregator\.view_temperature"),
        ({"solver": "sinkhorm"}, r"exact, sinkhorn, unbalanced or partial"),
        ({"epsilon": 0.0}, r"aggregator\.epsilon"),
        ({"solver": "partial", "mass": 1.2}, r"aggregator\.mass"),
        ({"solver": "unbalanced", "marginal_penalty": 0.0}, r"aggregator\.marginal_penalty"),
        ({"max_iterations": 0}, r"aggregator\.max_iterations"),
    ],
)
def test_transport_refuses_by_the_name_of_the_knob(problem, knobs, message):
    settings = {"solver": "sinkhorn", "epsilon": 0.1, "view_set": "crops", "text_set": "descriptions", **knobs}
    with pytest.raises(ValueError, match=message):
        aggregators.optimal_transport(*problem, SCALE, **settings)


# solvers


def random_transport(generator, uniform):
    """Costs like those of cosines, and marginals with a padded prompt."""
    cost = 0.7 + 0.1 * torch.randn(2, 3, 6, 5, generator=generator)
    a, b = torch.rand(2, 3, 6, generator=generator), torch.rand(2, 3, 5, generator=generator)
    a, b = (torch.ones_like(a), torch.ones_like(b)) if uniform else (a, b)
    b[..., 4] = 0
    return cost, a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)


def problems(cost, a, b):
    """Index, and one problem without its padding, in float64."""
    for index in np.ndindex(cost.shape[:2]):
        used = b[index] > 0
        yield (*index, slice(None), used), *(x.double().numpy() for x in (cost[index][:, used], a[index], b[index][used]))


def normalised(x):
    return x / x.sum()


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize(("epsilon", "penalty"), [(0.05, 0.1), (0.02, 1.0), (0.1, 0.02)])
def test_unbalanced_is_pots(generator, uniform, epsilon, penalty):
    cost, a, b = random_transport(generator, uniform)
    plan = transport.unbalanced(cost, a, b, epsilon=epsilon, marginal_penalty=penalty, tolerance=1e-6, max_iterations=5000)
    assert (plan[..., 4] == 0).all()
    for where, c, rows, columns in problems(cost, a, b):
        knobs = {"reg": epsilon, "reg_m": penalty, "method": "sinkhorn", "reg_type": "kl", "numItermax": 100000, "stopThr": 1e-13}
        expected = ot.unbalanced.sinkhorn_unbalanced(rows, columns, c, **knobs)
        torch.testing.assert_close(plan[where].double(), torch.from_numpy(expected), atol=1e-6, rtol=1e-3)


def test_unbalanced_in_solve_is_the_same_plan_but_for_its_mass(generator):
    cost, a, b = random_transport(generator, False)
    knobs = {"epsilon": 0.05, "marginal_penalty": 0.1, "tolerance": 1e-6, "max_iterations": 5000}
    ours, plain = transport.solve(cost, a, b, solver="unbalanced", **knobs), transport.unbalanced(cost, a, b, **knobs)
    shares = [plan / plan.sum((2, 3), keepdim=True) for plan in (ours, plain)]
    torch.testing.assert_close(*shares, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("mass", [0.3, 0.8, 1.0])
def test_partial_is_pots_entropic_one(generator, uniform, mass):
    cost, a, b = random_transport(generator, uniform)
    plan = transport.partial(cost, a, b, epsilon=0.05, mass=mass, tolerance=1e-7, max_iterations=20000)
    assert (plan[..., 4] == 0).all()
    for where, c, rows, columns in problems(cost, a, b):
        relative = c - 0.05 * np.log(rows[:, None] * columns)  # POT's entropy is not relative to a b^T
        total = min(mass, rows.sum(), columns.sum())
        expected = ot.partial.entropic_partial_wasserstein(rows, columns, relative, 0.05, m=total, numItermax=20000, stopThr=1e-10)
        torch.testing.assert_close(plan[where].double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-3)


def test_partial_approaches_pots_exact_one_and_keeps_below_the_marginals(generator):
    cost, a, b = random_transport(generator, False)
    plan = transport.partial(cost, a, b, epsilon=2e-3, mass=0.6, tolerance=1e-4, max_iterations=50000)
    torch.testing.assert_close(plan.sum((2, 3)), torch.full((2, 3), 0.6), atol=1e-4, rtol=0)
    assert (plan.sum(3) <= a + 1e-3).all() and (plan.sum(2) <= b + 1e-3).all()
    for where, c, rows, columns in problems(cost, a, b):
        expected = (ot.partial.partial_wasserstein(normalised(rows), normalised(columns), c, m=0.6) * c).sum()
        assert float((plan[where].double() * torch.from_numpy(c)).sum()) == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize(("solver", "knobs"), [("unbalanced", {"marginal_penalty": 1e4}), ("partial", {"mass": 1.0})])
def test_relaxed_solvers_end_in_the_balanced_one(generator, solver, knobs):
    cost, a, b = random_transport(generator, False)
    settings = {"epsilon": 0.05, "max_iterations": 5000}
    balanced = transport.solve(cost, a, b, solver="sinkhorn", tolerance=1e-6, **settings)
    torch.testing.assert_close(transport.solve(cost, a, b, solver=solver, tolerance=1e-6, **settings, **knobs), balanced, atol=1e-3, rtol=0)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn", "unbalanced", "partial"])
def test_duplicated_crops_masked_prompts_and_a_crop_without_mass_change_nothing(generator, solver):
    text, views = random_text(generator), unit(2, 6, 16, generator=generator)
    knobs = {"solver": solver, "epsilon": 0.05, "tolerance": 1e-6, "max_iterations": 20000, "view_set": "crops", "text_set": "descriptions"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float32 cannot always reach 1e-6
        logits = aggregators.optimal_transport(views, text, SCALE, **knobs)
        doubled = aggregators.optimal_transport(torch.cat([views, views[:, 1:]], 1), text, SCALE, **knobs)
        wider = TextBank(
            torch.cat([text.features, unit(5, 1, 16, generator=generator)], 1),
            torch.cat([text.mask, torch.zeros(5, 1, dtype=torch.bool)], 1),
            text.prompts,
        )
        torch.testing.assert_close(doubled, logits, atol=1e-3, rtol=0)
        torch.testing.assert_close(aggregators.optimal_transport(views, wider, SCALE, **knobs), logits, atol=1e-4, rtol=0)
        cost, a, b = random_transport(generator, False)
        a[..., 0] = 0
        a = a / a.sum(-1, keepdim=True)
        settings = {"solver": solver, "epsilon": 0.05, "tolerance": 1e-6, "max_iterations": 5000}
        plan = transport.solve(cost, a, b, **settings)
        rest = transport.solve(cost[:, :, 1:].contiguous(), a[..., 1:], b, **settings)
        assert (plan[:, :, 0] == 0).all()
        torch.testing.assert_close(plan[:, :, 1:], rest, atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver", ["unbalanced", "partial"])
def test_a_relaxed_solver_that_has_not_converged_names_the_knob_and_gives_the_plan_so_far(generator, solver):
    cost, a, b = random_transport(generator, False)
    with pytest.warns(UserWarning, match=r"after 2 iterations .*aggregator\.max_iterations"):
        plan = transport.solve(cost, a, b, solver=solver, epsilon=0.02, tolerance=1e-9, max_iterations=2)
    for i, c in np.ndindex(2, 3):
        row, column, table = (x[i, c].double().numpy() for x in (a, b, cost))
        kernel = np.outer(row, column) * np.exp(-(table - (table[:, :4].min() if solver == "unbalanced" else 0)) / 0.02)
        r, s, total = np.ones(6), np.ones(5), 1.0 if solver == "unbalanced" else 0.8 / kernel.sum()
        soften = (lambda x: x ** (0.1 / 0.12)) if solver == "unbalanced" else (lambda x: np.minimum(x, 1))
        for _ in range(2):
            r = soften(row / (total * kernel @ s))
            s[:4] = soften(column / np.where(column > 0, total * r @ kernel, 1))[:4]
            total = 1.0 if solver == "unbalanced" else 0.8 / (r @ kernel @ s)
        np.testing.assert_allclose(plan[i, c].numpy(), total * r[:, None] * kernel * s, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("solver", ["sinkhorn", "unbalanced", "partial"])
def test_each_problem_stops_by_itself(generator, solver):
    """With a loose tolerance, a problem that ran on with its neighbours would end at another plan."""
    cost, a, b = random_transport(generator, False)
    knobs = {"solver": solver, "epsilon": 0.03, "tolerance": 0.02}
    whole = transport.solve(cost, a, b, **knobs)
    for i, c in np.ndindex(2, 3):
        alone = transport.solve(cost[i : i + 1, c : c + 1], a[i : i + 1, c : c + 1], b[i : i + 1, c : c + 1], **knobs)
        torch.testing.assert_close(alone[0, 0], whole[i, c], atol=1e-6, rtol=1e-4)


def test_the_solvers_defaults_are_those_of_the_configuration(generator, monkeypatch):
    cfg, passed = composed("aggregator=optimal_transport").aggregator, {}
    cost, a, b = random_transport(generator, False)
    for solver in ("sinkhorn", "unbalanced", "partial"):
        monkeypatch.setattr(transport.dispatch, solver, lambda *problem, **knobs: passed.update(knobs) or problem[0])
        transport.solve(cost, a, b, solver=solver, epsilon=0.05)
    names = ("epsilon", "tolerance", "max_iterations", "marginal_penalty", "mass")
    assert passed == {name: cfg[name] for name in names}


def test_partial_leaves_the_empty_crop_at_home(generator):
    text = axis_text(2)
    full, empty = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])
    views = torch.stack([full, full, full, full, empty])[None]
    knobs = {"solver": "partial", "epsilon": 0.01, "view_set": "crops", "text_set": "label"}
    _, plan, _ = aggregators.transport_plan(views, text, mass=0.75, **knobs)
    assert float(plan[0, 0, 3].sum()) < 1e-3 and float(plan[0, 0].sum()) == pytest.approx(0.75, abs=1e-3)
    assert float(aggregators.optimal_transport(views, text, 1.0, mass=0.75, **knobs)[0, 0]) == pytest.approx(1.0, abs=1e-3)


# blocks in memory


def test_chunks_hold_as_many_items_as_fit_and_one_at_least():
    assert chunks(7, 3, 9) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert chunks(7, 3, 8) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert chunks(2, 3, 1) == [slice(0, 1), slice(1, 2)] and chunks(2, 1, 100) == [slice(0, 2)] and chunks(0, 3, 9) == []


def test_blocks_split_classes_only_where_one_image_exceeds_the_memory(generator):
    views, text = unit(5, 3, 16, generator=generator), random_text(generator, classes=4)  # 4 classes x 3 views x 4 prompts = 48 an image
    assert blocks(views, text, 100) == [(slice(0, 2), [slice(0, 4)]), (slice(2, 4), [slice(0, 4)]), (slice(4, 5), [slice(0, 4)])]
    assert blocks(views, text, 47) == [(slice(i, i + 1), [slice(0, 3), slice(3, 4)]) for i in range(5)]
    assert blocks(views, text, 1) == [(slice(i, i + 1), [slice(c, c + 1) for c in range(4)]) for i in range(5)]


def test_classes_of_a_bank_come_as_a_slice_or_in_any_order(generator):
    text = random_text(generator)
    for part, rows in ((slice(1, 3), [1, 2]), ((4, 0), [4, 0])):
        some = classes_of(text, part)
        assert some.prompts == [text.prompts[row] for row in rows]
        assert torch.equal(some.features, text.features[rows]) and torch.equal(some.mask, text.mask[rows])


# pools


def test_pools_take_any_number_of_batch_axes(generator):
    x, query = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    mask = torch.rand(2, 3, 4, generator=generator) < 0.6
    mask[..., 0] = True
    means, weights = pools.mean(x, mask), pools.similarity_weights(x, query, mask, log_scale=0.5)
    plain, free = pools.masked_mean(x[..., 0], mask), pools.similarity_weights(x, query, log_scale=0.5)
    sums = pools.weighted_sum(x, weights)
    for i, j in np.ndindex(2, 3):
        members = [k for k in range(4) if mask[i, j, k]]
        mean = sum(x[i, j, k].double() for k in members) / len(members)
        assert means[i, j].tolist() == pytest.approx((mean / mean.norm()).tolist(), abs=1e-6)
        assert float(plain[i, j]) == pytest.approx(float(mean[0]), abs=1e-6)
        scores = [math.exp(0.5) * dot(x[i, j, k], query[i, j]) for k in range(4)]
        expected = dict(zip(members, softmax([scores[k] for k in members]), strict=True))
        assert weights[i, j].tolist() == pytest.approx([expected.get(k, 0) for k in range(4)], abs=1e-6)
        assert free[i, j].tolist() == pytest.approx(softmax(scores), abs=1e-6)
        assert sums[i, j].tolist() == pytest.approx(sum(w * x[i, j, k].double() for k, w in expected.items()).tolist(), abs=1e-5)
    mask[1, 2] = False
    with pytest.raises(ValueError, match="a pool got an empty set"):
        pools.mean(x, mask)


# presets, edges, the picture


def test_presets_are_their_functions_with_the_sources_settings(generator):
    text, views = random_text(generator), unit(3, 8, 16, generator=generator)
    make = lambda *overrides: instantiate(without(composed(*overrides).aggregator, "facts"))(views, text, 20.0)  # noqa: E731
    awt = {"epsilon": 0.1, "solver": "sinkhorn", "view_set": "all", "text_set": "all"}
    entropy_both = {"view_marginal": "entropy", "prompt_marginal": "entropy", "view_temperature": 0.5, "prompt_temperature": 0.5}
    torch.testing.assert_close(make("aggregator=awt"), aggregators.optimal_transport(views, text, 20.0, **awt, **entropy_both))
    assert torch.equal(make("aggregator=abs"), make("aggregator=soft_match"))
    exact = make("aggregator=optimal_transport", "aggregator.solver=exact")
    assert torch.equal(make("aggregator=dnd", "aggregator.solver=exact"), exact)
    assert torch.equal(make("aggregator=dnd"), make("aggregator=optimal_transport", "aggregator.epsilon=0.05"))


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("option", options("aggregator"))
def test_edges_stay_finite(option, scale, generator):
    aggregate = instantiate(without(composed(f"aggregator={option}").aggregator, "facts"))
    ragged, two = random_text(generator), random_text(generator, prompts=2)
    views = unit(2, 6, 16, generator=generator)
    one_class = TextBank(ragged.features[:1], ragged.mask[:1], ragged.prompts[:1])
    for crops in (views, views[:, :1], views[:, :2], views[:, :1].expand(-1, 5, -1)):
        for text in (ragged, two, one_class):
            logits = aggregate(crops, text, scale)
            assert logits.shape == (2, len(text.prompts)) and logits.isfinite().all()


@pytest.mark.parametrize("option", sorted(set(options("aggregator")) - {"vote", "soft_match", "abs", "topk"}))
def test_identical_crops_are_one_crop(option, generator):
    aggregate, text = instantiate(without(composed(f"aggregator={option}").aggregator, "facts")), random_text(generator)
    view = unit(2, 1, 16, generator=generator)
    torch.testing.assert_close(aggregate(view.expand(-1, 4, -1), text, 10.0), aggregate(view, text, 10.0), atol=5e-3, rtol=0)


@pytest.mark.parametrize("option", ["optimal_transport", "awt", "dnd"])
def test_the_explained_plan_is_the_one_behind_the_logits(option, generator):
    text, views, names = random_text(generator), unit(6, 16, generator=generator), [str(c) for c in range(5)]
    scorer = Scorer(text, 20.0, instantiate(without(composed(f"aggregator={option}").aggregator, "facts")), 1.0)
    logits = scorer(views[None])[0]
    for c in range(5):
        first = torch.nn.functional.one_hot(torch.tensor(c), 5).float()
        item = explain(scorer, views, torch.zeros(6, 4), names, name="a", open_image=lambda: Image.new("RGB", (8, 8)), logits=first)
        side = item.predicted
        n_views, n_prompts = side.plan.shape
        assert side.name == str(c) and (n_views, n_prompts) == (len(item.boxes), len(side.prompts))
        scores = views[-n_views:] @ text.features[c, text.prompts[c].index(side.prompts[0]) :][:n_prompts].T
        torch.testing.assert_close(side.scores, scores)
        assert float(20 * (side.plan * scores).sum() / side.plan.sum()) == pytest.approx(float(logits[c]), abs=1e-3)


# what an aggregator declares


def test_a_plan_of_some_classes_is_that_of_all_classes(problem):
    """The marginals still compare all classes; the classes come in the order asked for."""
    views, text = problem
    awt = as_aggregator(instantiate(composed("aggregator=awt").aggregator))
    whole, some = awt.plan(views, text, 20.0), awt.plan(views, text, 20.0, classes=[3, 1])
    assert some.text.prompts == [text.prompts[3], text.prompts[1]] and some.mass.shape[1] == 2
    for found, expected in ((some.mass, whole.mass), (some.similarities, whole.similarities)):
        torch.testing.assert_close(found, expected[:, [3, 1]], atol=1e-5, rtol=1e-3)
    plan, used = whole.mass, whole.similarities
    torch.testing.assert_close(awt(views, text, 20.0), 20 * (plan * used).sum((2, 3)) / plan.sum((2, 3)), atol=1e-3, rtol=0)


def test_the_plan_takes_every_knob_of_the_logits(problem):
    views, text = problem
    knobs = {"solver": "sinkhorn", "epsilon": 0.1, "view_marginal": "best_match", "prompt_marginal": "entropy", **ALL}
    warm = {**knobs, "view_temperature": 0.2, "prompt_temperature": 1.5}
    for given in (warm, {**warm, "prompt_temperature": 0.1}, {**warm, "view_temperature": 2.0}):
        scores, mass, _ = aggregators.transport_plan(views, text, logit_scale=SCALE, **given)
        logits = aggregators.optimal_transport(views, text, SCALE, **given)
        torch.testing.assert_close(SCALE * (mass * scores).sum((2, 3)) / mass.sum((2, 3)), logits, atol=1e-5, rtol=0)
    assert torch.equal(
        aggregators.transport_plan(views, text, **knobs).mass, aggregators.transport_plan(views, text, logit_scale=100.0, **knobs).mass
    )


DECLARED = {  # has a plan, prunes, reads label prompts only
    "global": (False, False, True),
    "mta": (False, False, True),
    "vote": (False, False, True),
    "optimal_transport": (True, False, False),
    "dnd": (True, False, False),
    "dnd_fused": (True, False, False),
    "awt": (True, False, False),
    "dnd_exact": (True, True, False),
    "lazsl": (True, False, False),
}


@pytest.mark.parametrize("option", options("aggregator"))
def test_an_aggregator_says_what_it_is(option):
    made = as_aggregator(instantiate(without(composed(f"aggregator={option}").aggregator, "facts")))
    assert (made.has_plan, made.prunes, made.text_set == "label") == DECLARED.get(option, (False, False, False))
    assert as_aggregator(made) is made


def test_an_aggregator_of_a_user_declares_nothing_and_reads_what_its_knobs_or_their_defaults_say(problem):
    def mine(views, text, logit_scale, *, text_set="label", view_set="crops", prune=True):
        return logit_scale * views.mean(1) @ text.label.T

    made = as_aggregator(mine)
    assert (made.text_set, made.view_set, made.prunes, made.has_plan) == ("label", "crops", False, False)
    assert as_aggregator(partial(mine, text_set="all")).text_set == "all" and as_aggregator(lambda v, t, s: s).text_set == "all"
    assert made.plan(*problem, 1.0) is None and torch.equal(made(*problem, 2.0), mine(*problem, 2.0))
    with pytest.raises(TypeError, match="bind them by name"):
        as_aggregator(partial(mine, 1))


def test_a_decorator_declares_the_plan_and_the_knobs_of_pruning(problem):
    calls = []

    def planned(views, text, **knobs):
        calls.append((views, text, knobs))
        return TransportPlan(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), text)

    def mine(views, text, logit_scale, *, bound=False, slack=0.5, text_set="all"):
        return logit_scale * views.mean(1) @ text.label.T

    made = as_aggregator(aggregator(plan=planned, pruning=["bound", "slack"])(mine))
    assert as_aggregator(mine) is made and made.function is mine
    assert (made.has_plan, made.prunes, made.text_set, made.view_set, made.pruning) == (True, False, "all", "all", ("bound", "slack"))
    bound = as_aggregator(partial(mine, bound=True, slack=0.1))
    assert bound.prunes and bound.identity != as_aggregator(partial(mine, bound=True, slack=0.2)).identity
    assert as_aggregator(partial(mine, slack=0.1)).identity == as_aggregator(partial(mine, slack=0.2)).identity
    views, text = problem
    plan = bound.plan(views, text, 7.0, classes=[2])
    assert plan.text is text and calls == [(views, text, {"logit_scale": 7.0, "classes": [2], "bound": True, "slack": 0.1})]
    plain = as_aggregator(aggregator()(lambda views, text, logit_scale, *, bound=True: views[:, 0]))
    assert (plain.has_plan, plain.prunes, plain.text_set) == (False, False, "all")
    assert as_aggregator(aggregator(labels_only=True)(lambda views, text, logit_scale: views[:, 0])).text_set == "label"


def test_an_aggregators_identity_holds_the_knobs_that_change_its_logits():
    exact = composed("aggregator=dnd_exact").aggregator
    identity = lambda **knobs: as_aggregator(instantiate(exact, **knobs)).identity  # noqa: E731
    assert identity(prune=False, certified_fusion_weight=0.5) == identity(prune=False, certified_fusion_weight=1.0)
    assert identity(certified_fusion_weight=0.5) != identity(certified_fusion_weight=1.0) != identity(prune=False)
    assert identity(prompt_marginal="entropy") != identity()
    assert as_aggregator(aggregators.mean_feature).identity != as_aggregator(aggregators.mean_similarity).identity
    with pytest.raises(ValueError, match="named function"):
        _ = as_aggregator(Nameless()).identity


# the scorer and its cache


def test_a_scorer_fuses_the_global_views_logits_by_its_weight(problem):
    views, text = problem
    local, whole = aggregators.mean_feature(views, text, SCALE, **ALL), aggregators.global_view(views, text, SCALE)
    mean = partial(aggregators.mean_feature, **ALL)
    for weight in (0.0, 0.3, 1.0):
        torch.testing.assert_close(Scorer(text, SCALE, mean, weight)(views), (1 - weight) * whole + weight * local)
    assert torch.equal(aggregators.fuse(torch.full_like(local, torch.nan), local, 1.0), local)  # purely local: the other is not read
    for weight in (-0.01, 1.01):
        with pytest.raises(ValueError, match=r"task\.fusion_weight"):
            Scorer(text, SCALE, mean, weight)


def test_a_scorer_with_another_text_or_aggregator_leaves_the_first_as_it_was(problem):
    views, text = problem
    other = TextBank(text.features.flip(0), text.mask.flip(0), text.prompts[::-1])
    scorer = Scorer(text, SCALE, partial(aggregators.mean_feature, **ALL), 0.5)
    before = scorer(views)
    torch.testing.assert_close(with_text(scorer, other)(views), before.flip(1))
    changed = with_aggregator(scorer, aggregators.global_view)
    torch.testing.assert_close(changed(views), aggregators.global_view(views, text, SCALE))
    assert torch.equal(scorer(views), before) and scorer.spared == 0
    assert reads_labels_alone(changed) and not reads_labels_alone(scorer) and not reads_labels_alone(AnotherScore())


def test_a_cache_of_logits_tells_batches_apart_and_keeps_to_its_bytes(generator):
    views, logits = unit(2, 6, 4, generator=generator), torch.arange(6.0).view(2, 3)
    key = LogitsCache.key(views)
    assert LogitsCache.key(views.clone()) == key and LogitsCache.key(views.mT.contiguous().mT) == key
    with torch.inference_mode():
        assert LogitsCache.key(views) != key
    assert len({key, LogitsCache.key(views.view(6, 2, 4)), LogitsCache.key(views.view(2, 3, 8)), LogitsCache.key(-views)}) == 4
    cache = LogitsCache(max_bytes=2 * logits.nbytes)
    assert cache.get(key) is None and len(cache) == 0
    for name in ("a", "a", "b", "c"):  # the second is there already, the last one does not fit
        cache.put((name,), logits, 0.5)
    assert len(cache) == 2 and cache.bytes == 2 * logits.nbytes and cache.get(("c",)) is None
    stored, seconds = cache.get(("b",))
    assert torch.equal(stored, logits) and stored.data_ptr() != logits.data_ptr() and seconds == 0.5


class AnotherScore:
    """Meets the protocol `Score` without being a Scorer."""

    text, logit_scale = None, SCALE

    def __call__(self, views):
        return views[:, 0]


class Nameless:
    """A callable without a name."""

    def __call__(self, views, text, logit_scale):
        return views
