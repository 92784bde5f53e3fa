"""2SFS: which weights its first stage moves and how, its classifier against a loop in double precision, and the prompts it gives."""

import math

import pytest
import torch
from conftest import pictures, random_encoder
from refusals import refused
from torch.nn.functional import cross_entropy, normalize

from multicrop.adapters.support_pixels import Passes, random_view
from multicrop.adapters.tuned_encoder import LabelTexts
from multicrop.adapters.twostage import TwoStage
from multicrop.text import TextBank

LABELS = ["a photo of a dog.", "a photo of a cat."]
PROMPTS = [[LABELS[0], "a dog barks"], [LABELS[1], "a cat purrs"]]
KNOBS = {"norms": "blocks", "first_stage": 0.0, "learning_rate": 0.01, "iterations_per_shot": 3, "batch_size": 4, "accelerator": "cpu"}


def adapter(**knobs):
    text = TextBank(torch.zeros(2, 2, 16), torch.ones(2, 2, dtype=torch.bool), PROMPTS)
    return TwoStage(text=text, logit_scale=20.0, encoder=random_encoder(), seed=1, **KNOBS | knobs)


def moved(tuned):
    before = random_encoder().model.state_dict()
    return {name: value - before[name] for name, value in tuned.model.state_dict().items() if not torch.equal(value, before[name])}


def batches_of(support, stage, count, encoder, size=4):
    """Views and labels of each iteration."""
    order = Passes(len(support), size, 2 + stage)
    for order.epoch in range(count):
        (batch,) = order
        views = [random_view(support, index, encoder.spec, order.key) for index in batch.tolist()]
        yield torch.stack(views), torch.tensor([support.labels[index] for index in batch.tolist()])


def test_the_first_stage_takes_adamw_steps_on_the_norms_of_the_blocks_alone():
    support, validation, encoder = pictures(4, "support"), pictures(4, "validation"), random_encoder()
    learner = adapter(first_stage=1.0, iterations_per_shot=1, batch_size=2)
    tuned = learner.fit(support, validation)
    weights = {name: p for name, p in encoder.model.named_parameters() if "layer_norm" in name and ".layers." in name}
    assert len(learner.losses) == 2 and set(moved(tuned)) == set(weights) and len(weights) == 2 * 2 * 2 * 2
    single = adapter(first_stage=0.5, iterations_per_shot=1, batch_size=2).fit(support, validation)
    pixels, labels = next(batches_of(support, 1, 1, encoder, 2))
    logits = 20.0 * encoder.encode_images(pixels) @ LabelTexts(encoder, LABELS).features(encoder).T
    gradients = torch.autograd.grad(cross_entropy(logits, labels), list(weights.values()))
    after = dict(single.model.named_parameters())
    for (name, value), gradient in zip(weights.items(), gradients, strict=True):
        large = gradient.abs() > 1e-5  # where rounding does not decide the sign of the step
        expected = value * (1 - 0.01 * 0.01) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after[name][large], expected[large], atol=1e-4, rtol=0)


def test_all_norms_are_those_outside_the_blocks_too():
    found = {
        which: set(moved(adapter(first_stage=1.0, norms=which).fit(pictures(2, "s"), pictures(2, "v")))) for which in ("blocks", "all")
    }
    outside = found["all"] - found["blocks"]
    assert found["blocks"] < found["all"] and all("norm" in name and ".layers." not in name for name in outside)


def test_the_classifier_is_a_loop_in_double_precision():
    support, encoder = pictures(6, "support"), random_encoder()
    learner = adapter()
    tuned = learner.fit(support, pictures(4, "validation"))
    assert not moved(tuned) and len(learner.losses) == 9  # 3 shots
    start = torch.stack([encoder.encode_texts([label])[0] for label in LABELS]).double()
    rows, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, (pixels, labels) in enumerate(batches_of(support, 2, 9, encoder)):
        rate = 1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * t / 9)) / 2
        with torch.no_grad():
            f = encoder.encode_images(pixels).double()
        rows = rows.detach().requires_grad_()
        loss = sum(-(20 * normalize(rows, dim=-1) @ f[i]).log_softmax(0)[labels[i]] for i in range(len(f))) / len(f)
        slope = torch.autograd.grad(loss, rows)[0]
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        step = (first / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        rows = rows.detach() * (1 - rate * 0.01) - rate * step
        assert learner.losses[t] == pytest.approx(loss.item(), abs=1e-4)
    torch.testing.assert_close(learner.step.double(), rows - start, atol=1e-4, rtol=0)
    bank = learner.encode_prompts(tuned, [[label] for label in LABELS], [0, 1])
    torch.testing.assert_close(bank.label.double(), normalize(rows, dim=-1), atol=1e-4, rtol=0)


def test_classes_without_a_row_have_the_prompts_of_the_tuned_tower():
    learner = adapter(first_stage=0.5)
    tuned = learner.fit(pictures(4, "support"), pictures(4, "validation"))
    plain = tuned.encode_prompts(PROMPTS)
    bank = learner.encode_prompts(tuned, PROMPTS, [1, None])
    torch.testing.assert_close(bank.features[1], plain.features[1])
    torch.testing.assert_close(bank.features[0], normalize(plain.features[0] + learner.step[1], dim=-1))
    assert learner.class_free and learner.selection["how"] == "fixed" and random_encoder().fingerprint() != tuned.fingerprint()


def test_a_pass_ends_with_a_smaller_batch():
    order, drawn = Passes(5, 2, 3), []
    for order.epoch in range(6):
        drawn += [len(batch) for batch in order]
    assert drawn == [2, 2, 1, 2, 2, 1]


def test_refuses_other_norms():
    with refused("adapter.norms is blocks or all", "'outer'"):
        adapter(norms="outer")
