"""RLA, CLAP, TIMO and APE-T against slow loops in double precision, written from the formulas of their papers."""

import math

import pytest
import torch
from few_shot_problem import Problem
from refusals import refused

from multicrop.adapters.ape import criterion as ranking
from multicrop.adapters.ape_t import ApeT
from multicrop.adapters.clap import Clap
from multicrop.adapters.rla import Rla
from multicrop.adapters.timo import Timo
from multicrop.adapters.training import Shuffled
from multicrop.aggregators import global_view, pools
from multicrop.text import TextBank

RLA = {"strength": 1.0, "penalty": None, "samples": "views", "learning_rate": 0.01, "steps": 9}
CLAP = {"residual": 1.0, "constraint": "class", "text_norm": 7.0, "text_set": "label", "view_set": "all", "samples": "views"}
CLAP |= {"learning_rate": 0.1, "epochs": 6, "seed": 3}
TIMO = {"gamma": 5.0, "prompt_share": 1.0, "guided": 1.0, "alpha": 2.0, "text_set": "all", "view_set": "all", "samples": "views"}
APE_T = {"criterion": "text", "similarity_weight": 0.2, "variance_weight": 0.8, "channel_share": 0.5, "view_set": "all"}
APE_T |= {"samples": "views", "learning_rate": 0.01, "eps": 0.001, "weight_decay": 0.1, "epochs": 4, "batch_size": 5, "seed": 2}
APE_T |= {"alpha": 1.5, "beta": 2.5, "residual": 1.0}


def norm(x):
    return x / x.norm()


def log_softmax(x):
    return x - x.exp().sum().log()


@pytest.fixture
def plain(generator):
    """A problem whose host is the global view against the label prompts, as the authors' is."""
    return Problem(generator, aggregator=global_view)


def loss_of_rla(matrix, problem, view, penalty):
    """Cross entropy of one view per image plus the sum of squares of all entries of A - I."""
    text, total = problem.score.text.features[:, 0].double(), 0.0
    for views, label in zip(problem.support.views.double(), problem.support.labels, strict=True):
        total = total - log_softmax(10 * text @ norm(matrix @ views[view]))[label]
    distance = sum((matrix[i, j] - float(i == j)) ** 2 for i in range(8) for j in range(8))
    return total / len(problem.support.labels) + penalty * distance


def adam(gradient_at, matrix, rates):
    """Adam with eps 1e-4, written out."""
    first, second = torch.zeros_like(matrix), torch.zeros_like(matrix)
    for t, rate in enumerate(rates):
        gradient = gradient_at(matrix, t)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        step = (first / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.999 ** (t + 1))).sqrt() + 1e-4)
        matrix = (matrix - rate * step).detach()
    return matrix


class TestRla:
    def test_is_the_formula(self, plain):
        adapter = plain.fitted(Rla, **RLA)

        def gradient(matrix, t):
            matrix = matrix.clone().requires_grad_()
            return torch.autograd.grad(loss_of_rla(matrix, plain, (t + 1) % 4, 1 / 4), matrix)[0]  # 4 shots

        rates = [0.01 * (1 + math.cos(math.pi * t / 9)) / 2 for t in range(9)]
        expected = adam(gradient, torch.eye(8, dtype=torch.double), rates)
        torch.testing.assert_close(adapter.matrix.double(), expected, atol=1e-4, rtol=0)
        text = plain.score.text.features[:, 0].double()
        wanted = torch.stack([10 * text @ norm(expected @ views[0]) for views in plain.validation.views.double()])
        torch.testing.assert_close(plain.adapted(adapter).double(), wanted, atol=1e-4, rtol=0)

    def test_the_penalty_holds_it_at_the_identity_and_strength_0_is_the_host(self, plain):
        free, held = (plain.fitted(Rla, **{**RLA, "penalty": penalty}) for penalty in (0.0, 100.0))
        far = [(adapter.matrix - torch.eye(8)).norm() for adapter in (free, held)]
        assert far[1] < 0.2 * far[0]
        still = plain.fitted(Rla, **{**RLA, "strength": 0.0})
        assert torch.equal(plain.adapted(still), plain.validation.logits)

    def test_images_are_scored_with_all_their_views_through_the_aggregator(self, generator):
        problem = Problem(generator)
        adapter = problem.fitted(Rla, **{**RLA, "samples": "images", "steps": 1})
        expected = torch.nn.functional.cross_entropy(problem.support.logits, problem.support.labels)
        assert adapter.losses == [pytest.approx(expected.item(), abs=1e-5)] and adapter.class_free

    def test_refuses_other_samples(self, plain):
        with refused("adapter.samples is images", "'crops'"):
            plain.fitted(Rla, **{**RLA, "samples": "crops"})


class TestClap:
    def test_is_the_formula(self, plain):
        adapter = plain.fitted(Clap, **CLAP)
        x, labels = plain.support.views.double().flatten(0, 1), plain.support.labels.repeat_interleave(4)
        w = plain.score.text.features[:, 0].double()
        start = 7 * w
        lam = [torch.stack([log_softmax(10 * w @ f).exp()[c] for f, y in zip(x, labels, strict=True) if y == c]).mean() for c in range(3)]
        u, velocity = start.clone(), torch.zeros_like(start)
        order, step = Shuffled(48, 48, 256, 3), 0
        for epoch in range(6):
            order.epoch = epoch
            rate = 1e-5 if epoch == 0 else 0.1 * (1 + math.cos(math.pi * (epoch - 1) / 6)) / 2
            for batch in order:
                u = u.detach().requires_grad_()
                prototypes = torch.stack([norm(row) for row in u])
                loss = -sum(log_softmax(10 * prototypes @ x[i])[labels[i]] for i in batch) / len(batch)
                loss = loss + sum(lam[c] * ((u[c] - start[c]) ** 2).sum() for c in range(3)) / 3
                velocity = 0.9 * velocity + torch.autograd.grad(loss, u)[0]
                u, step = u - rate * velocity, step + 1
        wanted = torch.stack([torch.stack([10 * norm(row) @ views[0] for row in u]) for views in plain.validation.views.double()])
        assert step == 6
        torch.testing.assert_close(plain.adapted(adapter).double(), wanted, atol=1e-4, rtol=0)
        assert (wanted - plain.validation.logits).abs().max() > 0.1

    def test_multipliers(self, plain):
        x, labels, w = plain.support.views[:, 0], plain.support.labels, plain.score.text.features[:, 0]
        found = {name: Clap(score=plain.score, **{**CLAP, "constraint": name}).multipliers(x, labels, w) for name in ("class", "constant")}
        assert 0 < found["class"].min() < found["class"].max() < 1
        torch.testing.assert_close(found["constant"], found["class"].mean().expand(3))
        others = {name: Clap(score=plain.score, **{**CLAP, "constraint": name}).multipliers(x, labels, w) for name in ("balanced", "none")}
        assert others["balanced"].tolist() == [1, 1, 1] and others["none"].tolist() == [0, 0, 0]
        corrected = Clap(score=plain.score, **{**CLAP, "constraint": "corrected"}).multipliers(x, labels, w)
        torch.testing.assert_close(corrected, 3 * found["class"] / found["class"].sum())

    def test_the_penalty_pulls_the_prompts_back(self, plain):
        free, pulled = (plain.fitted(Clap, **{**CLAP, "constraint": name}).step.norm() for name in ("none", "balanced"))
        assert pulled < free

    def test_refuses_another_constraint(self, plain):
        with refused("adapter.constraint is one of class", "'cosine'"):
            plain.fitted(Clap, **{**CLAP, "constraint": "cosine"})


def timo(problem, gamma, share, alpha):
    """The logits of TIMO in double precision, class by class."""
    views, labels = problem.support.views.double(), problem.support.labels
    prompts = [problem.score.text.features[c][problem.score.text.mask[c]].double() for c in range(3)]
    keys = [norm(image.sum(0)) for image in views]
    w, samples, of = [], [], []
    for c in range(3):
        a = norm(sum(key for key, y in zip(keys, labels, strict=True) if y == c))
        r = prompts[c] @ a
        weights = torch.stack([torch.exp(gamma * value / r.norm()) for value in r])
        w.append(norm(sum(weight * prompt for weight, prompt in zip(weights / weights.sum(), prompts[c], strict=True))))
        order = sorted(range(len(r)), key=lambda p, r=r: -float(r[p])) * 2
        chosen = order[: max(1, round(share * len(r)))]
        own = [view for image, y in zip(views, labels, strict=True) if y == c for view in image] + [r[p] * prompts[c][p] for p in chosen]
        samples += own
        of += [c] * len(own)
    x, of = torch.stack(samples), torch.tensor(of)
    means = torch.stack([x[of == c].mean(0) for c in range(3)])
    centred = torch.stack([x[i] - means[of[i]] for i in range(len(x))])
    sigma = centred.T @ centred / (len(x) - 1)
    precision = 8 * torch.linalg.pinv((len(x) - 1) * sigma + sigma.trace() * torch.eye(8, dtype=torch.double))
    rows = []
    for image in problem.validation.views.double():
        f = norm(image.sum(0))
        rows.append(
            torch.stack(
                [10 * f @ w[c] + alpha * (f @ precision @ means[c] - math.log(3) - means[c] @ precision @ means[c] / 2) for c in range(3)]
            )
        )
    return torch.stack(rows)


class TestTimo:
    @pytest.mark.parametrize(("gamma", "share"), [(5.0, 1.0), (100.0, 0.4), (20.0, 1.6)])
    def test_is_the_formula(self, gamma, share, generator):
        problem = Problem(generator)
        adapter = problem.fitted(Timo, **{**TIMO, "gamma": gamma, "prompt_share": share})
        torch.testing.assert_close(problem.adapted(adapter).double(), timo(problem, gamma, share, 2.0), atol=1e-4, rtol=0)

    def test_masked_prompts_change_nothing(self, generator):
        problem = Problem(generator)
        expected = problem.adapted(problem.fitted(Timo, **TIMO))
        text = problem.score.text
        wide = torch.cat([text.features, torch.zeros(3, 2, 8)], 1), torch.cat([text.mask, torch.zeros(3, 2, dtype=torch.bool)], 1)
        problem.score.text = TextBank(*wide, text.prompts)
        torch.testing.assert_close(problem.adapted(problem.fitted(Timo, **TIMO)), expected, atol=1e-5, rtol=0)

    def test_nothing_guided_and_no_discriminants_is_the_host(self, generator):
        problem = Problem(generator)
        adapter = problem.fitted(Timo, **{**TIMO, "guided": 0.0, "alpha": 0.0})
        assert torch.equal(problem.adapted(adapter), problem.validation.logits)

    def test_gamma_is_chosen_first_for_the_guided_text_alone(self, generator):
        problem = Problem(generator)
        search = {"gamma": [1.0, 30.0], "alpha": [0.0, 1.0]}
        adapter = problem.fitted(Timo, **TIMO, search=search)
        assert len(adapter.selection["curve"]) == 2 and len({point["gamma"] for point in adapter.selection["curve"]}) == 1
        right = {}
        for gamma in search["gamma"]:
            alone = problem.adapted(problem.fitted(Timo, **{**TIMO, "gamma": gamma, "alpha": 0.0}))
            right[gamma] = (alone.argmax(1) == problem.validation.labels).float().mean().item()
        assert right[adapter.knobs["gamma"]] == max(right.values())

    def test_a_restored_one_gives_the_same_logits(self, generator):
        problem = Problem(generator)
        adapter = problem.fitted(Timo, **TIMO, search={"gamma": [1.0, 30.0], "prompt_share": [0.5, 2.0]})
        again = Timo(score=problem.score, **TIMO)
        again.restore(adapter.learned_tensors(), adapter.selection["chosen"])
        assert torch.equal(problem.adapted(again), problem.adapted(adapter))

    def test_refuses_more_than_all_twice(self, generator):
        with refused("adapter.prompt_share lies in 0-2", "2.5"):
            Timo(score=Problem(generator).score, **{**TIMO, "prompt_share": 2.5})


class ApeTByHand:
    """APE-T in double precision, on the global view of every query."""

    def __init__(self, problem, *, alpha=1.5, beta=2.5):
        self.problem, self.alpha, self.beta = problem, alpha, beta
        self.text = problem.score.text.features[:, 0].double()
        self.keys = torch.stack([norm(image.sum(0)) for image in problem.support.views.double()])
        self.res, self.v = torch.zeros(3, 8, dtype=torch.double), torch.ones(12, dtype=torch.double)
        prompts = [features[mask].double() for features, mask in zip(problem.score.text.features, problem.score.text.mask, strict=True)]
        w = torch.stack([norm(own.sum(0)) for own in prompts])
        pairs = [w[i] * w[j] for i in range(3) for j in range(3) if i != j]
        best = (-0.2 * sum(pairs) / len(pairs) + 0.8 * w.var(0)).argsort(descending=True)[:4]
        self.on = torch.zeros(8, dtype=torch.double).index_fill(0, best, 1.0)

    def logits(self, view, f, res, v):
        """The logits of one query: the view that the text reads, and the feature that the cache reads."""
        labels = self.problem.support.labels
        votes = [v[i] * torch.exp(-self.beta * (1 - f @ (self.keys[i] + self.on * res[labels[i]]))) for i in range(12)]
        return torch.stack(
            [
                10 * view @ (self.text[c] + self.on * res[c]) + self.alpha * sum(votes[i] for i in range(12) if labels[i] == c)
                for c in range(3)
            ]
        )

    def train(self, epochs):
        """AdamW written out, over single views; yields after each epoch."""
        x, y = self.problem.support.views.double().flatten(0, 1), self.problem.support.labels.repeat_interleave(4)
        order, state, t = Shuffled(48, 12, 5, 2), [(0.0, 0.0), (0.0, 0.0)], 0
        for epoch in range(epochs):
            order.epoch = epoch
            for batch in order:
                rate, t = 0.01 * (1 + math.cos(math.pi * t / (3 * epochs))) / 2, t + 1
                res, v = self.res.clone().requires_grad_(), self.v.clone().requires_grad_()
                loss = -sum(log_softmax(self.logits(x[i], x[i], res, v))[y[i]] for i in batch) / len(batch)
                moved = []
                for k, (value, slope) in enumerate(zip((self.res, self.v), torch.autograd.grad(loss, (res, v)), strict=True)):
                    first, second = 0.9 * state[k][0] + 0.1 * slope, 0.999 * state[k][1] + 0.001 * slope**2
                    state[k] = first, second
                    step = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 0.001)
                    moved.append(value * (1 - rate * 0.1) - rate * step)
                self.res, self.v = moved
            yield self.res, self.v

    def validated(self):
        return torch.stack(
            [self.logits(views[0], norm(views.sum(0)), self.res, self.v) for views in self.problem.validation.views.double()]
        )


class TestApeT:
    def test_is_the_formula(self, plain):
        hand = ApeTByHand(plain)
        list(hand.train(4))
        adapter = plain.fitted(ApeT, **APE_T)
        torch.testing.assert_close(plain.adapted(adapter).double(), hand.validated(), atol=1e-4, rtol=0)
        assert (hand.validated() - ApeTByHand(plain).validated()).abs().max() > 0.05

    def test_the_first_epoch_with_the_best_validation_accuracy_is_kept(self, plain):
        hand, right = ApeTByHand(plain), []
        for _ in hand.train(4):
            logits = hand.validated()
            right.append(((logits.argmax(1) == plain.validation.labels).double().mean().item(), logits))
        best = max(right, key=lambda pair: pair[0])[1]
        adapter = plain.fitted(ApeT, **APE_T, search={"residual": [1.0]})
        torch.testing.assert_close(plain.adapted(adapter).double(), best, atol=1e-4, rtol=0)

    def test_channels_by_text_and_images_are_those_of_ape(self, plain):
        keys = torch.stack([norm(image.sum(0)) for image in plain.support.views])
        both, alone = (plain.fitted(ApeT, **{**APE_T, "criterion": name}) for name in ("text_and_images", "text"))
        text = pools.mean(plain.score.text.features, plain.score.text.mask)
        assert both.channels(keys).tolist() == ranking(text, keys, plain.support.labels, 0.2, 0.8).topk(4).indices.tolist()
        assert torch.count_nonzero(both.step.abs().sum(0)) == torch.count_nonzero(alone.step.abs().sum(0)) == 4

    def test_refuses_no_channels(self, plain):
        with refused("adapter.criterion is text or text_and_images", "'text' and 0"):
            plain.fitted(ApeT, **{**APE_T, "channel_share": 0})


@pytest.mark.parametrize(("adapter", "knobs"), [(Rla, {**RLA, "samples": "images"}), (Clap, CLAP), (ApeT, APE_T)])
def test_learned_tensors_take_the_place_of_a_fit(adapter, knobs, generator):
    problem = Problem(generator)
    fitted, again = problem.fitted(adapter, **knobs), adapter(score=problem.score, **knobs)
    again.restore(fitted.learned_tensors(), fitted.selection["chosen"])
    assert torch.equal(problem.adapted(again), problem.adapted(fitted))
