"""Context tokens through the text tower against the tower itself, and TPT and C-TPT against plain loops and finite differences."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import composed, random_encoder, unit
from hydra.utils import instantiate
from refusals import refused
from torch.nn.functional import normalize

from multicrop import aggregators
from multicrop.aggregators.score import Scorer
from multicrop.config import without
from multicrop.encoder import prompt_tokens, prompt_tuning
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.methods.c_tpt import CTpt, dispersion
from multicrop.methods.tpt import Tpt
from multicrop.runs.injectables import inject
from multicrop.text import TextBank

WORDS = "a photo of a"
PROMPTS = [
    ["a photo of a dog.", "a photo of a dog, which has fur, four legs and a wet nose", "a photo of a wet nose"],
    ["a photo of a cat."],
    ["a photo of a very red hot air balloon.", "a photo of a wet nose"],
]
KNOBS = {"words": WORDS, "share": 0.5, "learning_rate": 0.005, "steps": 1}
MEAN = partial(aggregators.mean_similarity, view_set="crops", text_set="all")
GLOBAL = aggregators.global_view


def double(encoder):
    return copy.deepcopy(encoder).double()


def check_gradient(value, tower, generator):
    """The gradient by the context, in double precision, is that of finite differences."""
    context = tower.words().expand(2, -1, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(context), [context])
    step = torch.randn(context.shape, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        slope = (value(context + 1e-5 * step) - value(context - 1e-5 * step)) / 2e-5
    torch.testing.assert_close((gradient * step).sum(), slope, atol=1e-8, rtol=1e-6)


class TestTower:
    def test_the_words_embeddings_give_what_the_encoder_gives(self, encoder):
        tower, expected = PromptTower(encoder, PROMPTS, lead=WORDS), encoder.encode_prompts(PROMPTS)
        got = tower.features(tower.words()[None], tower.all)[0]
        torch.testing.assert_close(got, expected.features, atol=1e-5, rtol=0)
        torch.testing.assert_close(tower.features(tower.words()[None], tower.labels)[0, :, 0], expected.label, atol=1e-5, rtol=0)

    def test_a_prompt_without_the_words_gets_the_context_in_front(self, encoder):
        tower = PromptTower(encoder, [["dog", "wet nose"], ["cat"]], lead=WORDS)
        expected = encoder.encode_prompts([["a photo of a dog", "a photo of a wet nose"], ["a photo of a cat"]])
        torch.testing.assert_close(tower.features(tower.words()[None], tower.all)[0], expected.features, atol=1e-5, rtol=0)

    def test_padded_to_the_models_length_gives_the_same(self, encoder, generator):
        """A tower that takes whole prompts, context within, padded to its full length, as prompt tuning is usually done."""
        tower = PromptTower(encoder, PROMPTS, lead=WORDS)
        context = tower.words() + 0.05 * torch.randn(4, tower.width, generator=generator)
        texts = [text for row in PROMPTS for text in row]
        ids = encoder.tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt")["input_ids"]
        text = encoder.model.text_model
        swapped = text.embeddings.token_embedding(ids)
        swapped[:, 1:5] = context
        seen = text.embeddings.token_embedding.register_forward_hook(lambda module, args, output: swapped)
        expected = normalize(encoder.model.get_text_features(ids).pooler_output, dim=-1)
        seen.remove()
        got = tower.features(context[None], tower.all)[0]
        torch.testing.assert_close(got[tower.all.place >= 0], expected, atol=1e-5, rtol=0)

    def test_each_copy_and_each_class_has_its_own_context(self, encoder, generator):
        tower = PromptTower(encoder, PROMPTS, lead=WORDS, n_tokens=3)
        context = 0.05 * torch.randn(3, 3, tower.width, generator=generator)
        together = tower.features(context, tower.all)
        for copy_, one in zip(together, context, strict=True):
            torch.testing.assert_close(copy_, tower.features(one[None], tower.all)[0], atol=1e-5, rtol=0)
        own = torch.stack([together[c, c] for c in range(3)])
        torch.testing.assert_close(tower.own_features(context, tower.all), own, atol=1e-5, rtol=0)

    def test_gradient_is_that_of_finite_differences(self, generator):
        tower = PromptTower(double(random_encoder()), PROMPTS, lead=WORDS)
        direction = torch.randn(2, 3, 3, 16, dtype=torch.float64, generator=generator)
        check_gradient(lambda context: (tower.features(context, tower.all) * direction).sum(), tower, generator)

    def test_little_memory_gives_the_same_features_and_gradient(self, encoder, generator, monkeypatch):
        tower = PromptTower(encoder, PROMPTS, lead=WORDS)
        context = (tower.words() + 0.05 * torch.randn(2, 4, tower.width, generator=generator)).requires_grad_()
        weights = torch.randn(2, 3, 3, 128, generator=generator)

        def run():
            features = tower.features(context, tower.all)
            return features, torch.autograd.grad((features * weights).sum(), context)

        features, (gradient,) = run()
        assert tower.copies_at_once(tower.all) > 1
        monkeypatch.setattr(prompt_tuning, "MEMORY", 1)
        assert tower.copies_at_once(tower.all) == 1
        small_features, (small_gradient,) = run()
        torch.testing.assert_close(features, small_features, atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, small_gradient, atol=1e-4, rtol=1e-4)

    def test_refuses_other_towers_and_too_long_prompts(self, encoder):
        other = copy.deepcopy(random_encoder())
        other.model.config.model_type = "siglip"
        with refused("siglip", "model=clip_vit_b32"):
            PromptTower(other, PROMPTS, lead=WORDS)
        with refused("30 context tokens", "n_tokens"):
            PromptTower(encoder, PROMPTS, lead=WORDS, n_tokens=30)
        with refused("one token or more"):
            PromptTower(encoder, PROMPTS, lead="")


def test_prompts_of_a_class_share_their_stem():
    """Classes with a shared beginning, with one prompt, and with a prompt that another class has as well; 1 is the end token."""
    rows = [[[5, 6, 7, 1], [5, 6, 8, 9, 1], [5, 6, 1], [7, 7, 1]], [[3, 1]], [[5, 6, 7, 1], [4, 4, 1], [4, 4, 2, 1]]]
    sheet = prompt_tokens.prompt_tokens(rows)
    stems = {tuple(stem[:depth].tolist()) for stem, depth in zip(sheet.stems, sheet.depth, strict=True)}
    assert stems == {(), (5, 6), (4, 4)}
    assert sheet.tokens() == 2 + 2 + (2 + 3 + 1 + 3) + 2 + (1 + 2) and sheet.longest() == 5
    whole, last = sheet.uncut()
    for places, row in zip(sheet.place, rows, strict=True):
        got = [whole[place, : last[place] + 1].tolist() for place in places if place >= 0]
        assert got == row


def test_parts_hold_every_row_once_in_bounds_of_room_and_padding():
    lengths = torch.tensor([0] + [2] * 40 + [3] * 300 + [9] * 30 + [40])
    for room in (1, 90, 10**9):
        parts = [lengths[part].tolist() for part in prompt_tokens.chunks(lengths, room)]
        assert [length for part in parts for length in part] == lengths.tolist()
        assert all(0 < len(part) <= prompt_tokens.CHUNK for part in parts)
        assert all(len(part) == 1 or len(part) * part[-1] <= room for part in parts)
        assert all(len(part) <= prompt_tokens.FEW or len(part) * part[-1] <= prompt_tokens.WASTE * sum(part) for part in parts)
    assert [len(part) for part in parts] == [41, 256, 44, 31]  # the last room is enough for all


class Problem:
    """Text of 3 classes by the random encoder, and 5 images of 6 views; in double precision, for gradients that hang on no rounding."""

    def __init__(self, generator, aggregator=MEAN, dtype=torch.float64):
        self.encoder = copy.deepcopy(random_encoder()).to(dtype)
        bank = self.encoder.encode_prompts(PROMPTS)
        self.text = TextBank(self.encoder_features(PROMPTS), bank.mask, bank.prompts)
        self.score = Scorer(self.text, 20.0, aggregator, 1.0)
        self.views = unit(5, 6, 16, generator=generator).to(dtype)
        self.logits = self.score(self.views)

    def encoder_features(self, prompts):
        tower = PromptTower(self.encoder, prompts, lead=WORDS)
        return tower.features(tower.words()[None], tower.all)[0]

    def method(self, kind=Tpt, **knobs):
        return kind(text=self.text, logit_scale=20.0, encoder=self.encoder, score=self.score, **KNOBS | knobs)


def label_features(encoder, context):
    """Label prompts through the plain tower, the context put in by hand."""
    tower, rows = encoder.model.text_model, []
    for prompt, *_ in PROMPTS:
        ids = encoder.tokenizer(prompt, return_tensors="pt")["input_ids"]
        embeddings = torch.cat([tower.embeddings.token_embedding(ids[:, :1])[0], context, tower.embeddings.token_embedding(ids[:, 5:])[0]])
        hook = tower.embeddings.token_embedding.register_forward_hook(lambda module, args, output, swap=embeddings: swap[None])
        rows.append(normalize(encoder.model.get_text_features(ids).pooler_output[0], dim=-1))
        hook.remove()
    return torch.stack(rows)


def nats(probability):
    return -sum(float(p) * math.log(float(p)) for p in probability)


def mean_entropy(views, labels):
    mean = sum((20.0 * labels @ view).softmax(0) for view in views) / len(views)
    return -sum(p * p.log() for p in mean)


def adamw_once(start, gradient, rate):
    """One step of AdamW from torch's defaults: weight decay 0.01, eps 1e-8; after one step both moments are unbiased."""
    return start * (1 - rate * 0.01) - rate * gradient / (gradient.abs() + 1e-8)


@pytest.mark.parametrize(("kind", "weight"), [(Tpt, 0.0), (CTpt, 3.0)])
def test_tpt_is_its_loop(kind, weight, generator):
    problem = Problem(generator)
    method = problem.method(kind, **({"dispersion_weight": weight} if weight else {}))
    tower, logits = PromptTower(problem.encoder, PROMPTS, lead=WORDS), method(problem.views, problem.logits)
    for image in range(3):
        views = problem.views[image]
        order = sorted(range(6), key=lambda k: nats((20.0 * problem.text.label @ views[k]).softmax(0)))
        context = tower.words().requires_grad_()
        labels = label_features(problem.encoder, context)
        mean = sum(labels) / 3
        loss = mean_entropy([views[k] for k in order[:3]], labels) - weight * sum((t - mean).square().sum().sqrt() for t in labels) / 3
        (gradient,) = torch.autograd.grad(loss, [context])
        tuned = adamw_once(context.detach(), gradient, 0.005)
        features = tower.features(tuned[None], tower.all)[0]
        expected = [
            20.0 * sum(sum(float(v @ t) for t in features[c, : len(row)]) / len(row) for v in views[1:]) / 5
            for c, row in enumerate(PROMPTS)
        ]
        torch.testing.assert_close(logits[image], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_c_tpts_gradient_is_that_of_finite_differences(generator):
    problem = Problem(generator)
    method = problem.method(CTpt, dispersion_weight=7.0)
    tower, views = method.tower, problem.views[:2]
    check_gradient(lambda context: method.loss(views, tower.features(context, tower.labels)[:, :, 0]).sum(), tower, generator)


def test_tpt_makes_the_kept_views_surer_and_c_tpt_keeps_the_classes_further_apart(generator):
    problem = Problem(generator, GLOBAL)
    spread, surer = {}, {}
    for name, method in (("tpt", problem.method(steps=5)), ("c_tpt", problem.method(CTpt, steps=5, dispersion_weight=50.0))):
        kept = method._confident(problem.views)
        contexts = (method.tower.words().expand(5, -1, -1), method.tuned(problem.views))
        before, after = (method.tower.features(context, method.tower.labels)[:, :, 0] for context in contexts)
        surer[name] = (Tpt.loss(method, kept, before) - Tpt.loss(method, kept, after)).min()
        spread[name] = dispersion(after)
    assert surer["tpt"] > 0 and (spread["c_tpt"] > spread["tpt"]).all()


@pytest.mark.parametrize("aggregator", ["dnd", "mean_feature", "global"])
def test_no_step_is_zero_shot(aggregator, generator):
    chosen = composed(f"aggregator={aggregator}", *([] if aggregator == "global" else ["aggregator.text_set=all"])).aggregator
    problem = Problem(generator, instantiate(without(chosen, "facts")), torch.float32)
    for knobs in ({"steps": 0}, {"learning_rate": 0.0}):
        torch.testing.assert_close(problem.method(**knobs)(problem.views, problem.logits), problem.logits, atol=1e-4, rtol=0)
    assert (problem.method()(problem.views, problem.logits) - problem.logits).abs().max() > 1e-3


def test_each_image_starts_anew_and_batches_do_not_matter(generator, monkeypatch):
    problem = Problem(generator)
    method = problem.method()
    whole = method(problem.views, problem.logits)
    assert not torch.allclose(whole, problem.logits, atol=1e-4)
    one_by_one = torch.cat([method(views[None], problem.logits[:1]) for views in problem.views])
    torch.testing.assert_close(one_by_one, whole, atol=1e-8, rtol=0)
    monkeypatch.setattr(prompt_tuning, "MEMORY", 1)
    torch.testing.assert_close(method(problem.views, problem.logits), whole, atol=1e-8, rtol=0)
    torch.testing.assert_close(method(problem.views.flip(0), problem.logits), whole.flip(0), atol=1e-8, rtol=0)


def test_works_in_the_inference_mode_of_the_test_loop_and_keeps_no_state(generator):
    problem = Problem(generator)
    method = problem.method()
    expected = method(problem.views, problem.logits)
    with torch.inference_mode():
        assert torch.equal(method(problem.views.clone(), problem.logits.clone()), expected)
    assert not method.state_dict() and all(p.grad is None for p in problem.encoder.parameters())


def test_only_what_the_constructor_names_is_read():
    offered = SimpleNamespace(text=1, score=3, logit_scale=4.0)  # no encoder: what is not named is not read
    assert inject(lambda *, text, score, knob=5: (text, score, knob), offered) == (1, 3, 5)


def test_refuses_knobs_that_mean_nothing(generator):
    problem = Problem(generator)
    with refused("method.steps"):
        problem.method(steps=-1)
    with refused("above 0 and at most 1"):
        problem.method(share=0.0)(problem.views, problem.logits)
