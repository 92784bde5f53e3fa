"""CLIP-LoRA: what its updates are, that they descend, and that a run compares the tuned encoder with the one before."""

from dataclasses import replace

import pytest
import torch
from conftest import composed, options, pictures, random_encoder, random_text, session_of, unit
from few_shot_problem import die_after
from hydra.utils import instantiate
from refusals import refused
from torch import nn
from torch.nn import functional as F

from multicrop.adapters import descent
from multicrop.adapters.clip_lora import ClipLora
from multicrop.adapters.support_pixels import Iterations, OpenedImages, random_view
from multicrop.adapters.tuned_encoder import LabelTexts
from multicrop.aggregators.score import Scorer, with_text
from multicrop.config import without
from multicrop.features import OnTheFlyBank
from multicrop.runs.few_shot import TunedTask, build
from multicrop.runs.sweep_cache import SweepCache
from multicrop.text import TextBank

PROMPTS = [["a photo of a dog.", "a dog barks"], ["a photo of a cat.", "a cat purrs"]]
KNOBS = {
    "rank": 2,
    "alpha": 1,
    "dropout": 0.0,
    "learning_rate": 0.01,
    "iterations_per_shot": 1,
    "batch_size": 4,
    "accelerator": "cpu",
    "seed": 0,
}


def adapter(**knobs):
    text = TextBank(torch.zeros(2, 2, 16), torch.ones(2, 2, dtype=torch.bool), PROMPTS)
    return ClipLora(text=text, logit_scale=20.0, encoder=random_encoder(), **KNOBS | knobs)


def shots(per_class=1):
    return pictures(2 * per_class, "support"), pictures(4, "validation")


def changes(tuned):
    before = random_encoder().model.state_dict()
    return {name: value - before[name] for name, value in tuned.model.state_dict().items()}


def test_one_step_is_a_descent_of_low_rank_in_query_key_and_value_of_both_towers():
    """B starts at 0, so that the first step moves it alone: against the gradient of the weights, which is taken here by itself."""
    support, validation = shots()
    encoder, learner = random_encoder(), adapter(batch_size=2)
    moved = changes(learner.fit(support, validation))
    (batch,) = Iterations(2, 2, 0)
    pixels = torch.stack([random_view(support, index, encoder.spec, 0) for index in batch.tolist()])
    weights = {
        name: p for name, p in encoder.model.named_parameters() if any(part in name for part in ("q_proj.w", "k_proj.w", "v_proj.w"))
    }
    assert len(weights) == 3 * 2 * 2
    logits = 20.0 * encoder.encode_images(pixels) @ LabelTexts(encoder, [row[0] for row in PROMPTS]).features(encoder).T
    loss = F.cross_entropy(logits, torch.tensor([support.labels[index] for index in batch.tolist()]))
    for (name, _), gradient in zip(weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True):
        assert (gradient * moved[name]).sum() < 0
        spectrum = torch.linalg.svdvals(moved[name])
        assert spectrum[0] > 1e-4 and spectrum[2] < 1e-5
    assert all(not change.any() for name, change in moved.items() if name not in weights)
    assert learner.losses == [pytest.approx(loss.item(), abs=1e-5)]


def test_learns_and_leaves_the_encoder_it_came_from_alone():
    mark = random_encoder().fingerprint()
    learner = adapter(iterations_per_shot=12, batch_size=4, dropout=0.25)
    tuned = learner.fit(*shots(2))
    assert len(learner.losses) == 24 and sum(learner.losses[-4:]) < sum(learner.losses[:4])
    assert random_encoder().fingerprint() == mark != tuned.fingerprint()
    assert not tuned.model.training and not any("lora" in name for name, _ in tuned.named_modules())
    assert not any(isinstance(module, nn.Dropout) for module in tuned.modules())
    assert learner.selection["how"] == "fixed" and 0 <= learner.selection["chosen"]["accuracy"] <= 1


def test_same_seed_same_weights_and_no_rate_no_change():
    one, two, other, still = (adapter(dropout=0.25, **knobs).fit(*shots()) for knobs in ({}, {}, {"seed": 1}, {"learning_rate": 0.0}))
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()
    assert still.fingerprint() == random_encoder().fingerprint()


def test_batches_run_through_every_image_before_any_comes_again():
    batches, drawn = Iterations(5, 2, 3), []
    for batches.epoch in range(5):
        drawn += torch.cat(list(batches)).tolist()
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == list(range(5)) and drawn[:5] != drawn[5:]


def test_starts_from_zero_shot():
    """B is 0 at first: an iteration without a step leaves every weight, and its loss is that of the encoder it came from."""
    learner, (support, validation) = adapter(learning_rate=0.0, dropout=0.25), shots()
    tuned, encoder = learner.fit(support, validation), random_encoder()
    assert all(not change.any() for change in changes(tuned).values())
    (batch,) = Iterations(2, 4, 0)
    pixels = torch.stack([random_view(support, index, encoder.spec, 0) for index in batch.tolist()])
    logits = 20.0 * encoder.encode_images(pixels) @ LabelTexts(encoder, [row[0] for row in PROMPTS]).features(encoder).T
    expected = F.cross_entropy(logits, torch.tensor([support.labels[index] for index in batch.tolist()]))
    assert learner.losses == [pytest.approx(expected.item(), abs=1e-5)]


def counted_images(count):
    images, opened = pictures(count, "support"), []
    return replace(images, open=lambda index: opened.append(index) or images.open(index)), opened


def test_a_small_support_set_is_opened_once():
    support, opened = counted_images(2)
    adapter(iterations_per_shot=3).fit(support, shots()[1])
    assert sorted(opened) == list(range(len(support)))


def test_what_does_not_fit_into_memory_is_opened_again(monkeypatch):
    images, opened = counted_images(3)
    room = sum(4 * images.open(index).width * images.open(index).height for index in (0, 1))
    monkeypatch.setattr("multicrop.adapters.support_pixels.CACHE_BYTES", room)
    held = OpenedImages(images.open)
    opened.clear()
    assert [held(index).tobytes() for index in (0, 1, 2, 0, 1, 2)] == [images.open(index).tobytes() for index in (0, 1, 2)] * 2
    assert opened[:4] == [0, 1, 2, 2]


def test_label_features_do_not_depend_on_their_parts():
    """Forty texts of many lengths, in parts of eight, against each by itself."""
    encoder, texts = random_encoder(), [" ".join(["a dog"] * (1 + 7 * n % 9)) + f" {n}" for n in range(40)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("multicrop.adapters.tuned_encoder.MIN_PART", 8)
        labels = LabelTexts(encoder, texts)
    assert len(labels.parts) == 5 and len({part["input_ids"].shape[1] for part in labels.parts}) > 2
    with torch.no_grad():
        alone = torch.cat([encoder.encode_texts([text]) for text in texts])
        torch.testing.assert_close(labels.features(encoder), alone, atol=1e-5, rtol=1e-4)


def test_a_killed_fit_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
    knobs, (support, validation) = {"dropout": 0.25, "iterations_per_shot": 6, "batch_size": 3}, shots()
    whole, killed, resumed = adapter(**knobs), adapter(**knobs), adapter(**knobs)
    killed.checkpoint = resumed.checkpoint = tmp_path / "fits" / "fit.ckpt"
    expected = whole.fit(support, validation).fingerprint()
    with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
        die_after(4, patched)
        killed.fit(support, validation)
    seen = []
    monkeypatch.setattr("multicrop.adapters.support_pixels.random_view", lambda *args: seen.append(args[1]) or random_view(*args))
    torch.manual_seed(5)  # the state of the process does not matter
    assert resumed.fit(support, validation).fingerprint() == expected and resumed.losses == whole.losses
    assert len(seen) == 2 * 3 and resumed.checkpoint.exists()


SMALL = [
    "dataset.n_classes=4",
    "dataset.family_size=2",
    "dataset.test_images=2",
    "dataset.train_images=2",
    "dataset.validation_images=1",
]
LORA = ["adapter=clip_lora", "adapter.iterations_per_shot=4", "adapter.batch_size=4", "adapter.learning_rate=0.01"]


def run_session(tmp_path, *overrides):
    quick = ["trainer.progress=false", f"paths.cache={tmp_path}", "crop=random_k4", "task=few_shot", "task.shots=1"]
    return session_of(*SMALL, *LORA, *quick, *overrides)


def test_a_run_scores_what_the_tuned_encoder_sees_beside_what_the_old_one_saw(tmp_path):
    session = run_session(tmp_path)
    task = build(session, shots=1, few_shot_file=None)
    bank = session.bank(session.dataset.test)
    views, labels = bank.tensors()
    indices = torch.tensor([bank[i][2] for i in range(len(bank))])
    with torch.inference_mode():
        task.test_step((views[3:6], labels[3:6], indices[3:6]), 0)
    results = task.results()
    torch.testing.assert_close(results["aggregated"], session.scorer(views[3:6]))
    seen, _ = task.bank.tensors()
    torch.testing.assert_close(results["final"], task.tuned_scorer(seen[3:6]))
    assert (seen - views).abs().max() > 1e-3 and (results["final"] - results["aggregated"]).abs().max() > 1e-2
    assert task.adapter.selection["fit_seconds"] > 0 and not list(tmp_path.rglob("*.ckpt"))
    assert task.bank.manifest["identity"]["model"] != bank.manifest["identity"]["model"]


def test_a_sweep_over_aggregators_and_crops_fits_once(tmp_path):
    cache = SweepCache()
    same = ("crop=global", "aggregator=mean_feature", "task.fusion_weight=0.5")
    hosts = [run_session(tmp_path, *some) for some in ((), same, ("seed=2",), ("adapter.rank=1",))]
    for session in hosts:
        session.cache = cache
    tasks = [build(session, shots=1, few_shot_file=None) for session in hosts]
    fits = [task.adapter for task in tasks]
    assert fits[0] is fits[1] and len({id(fit) for fit in fits}) == 3
    assert len({task.bank.manifest["identity"]["model"] for task in tasks}) == 3
    assert tasks[0].bank.tensors()[0].shape[1] == 5 and tasks[1].bank.tensors()[0].shape[1] == 1


@pytest.mark.parametrize("aggregator", [o for o in options("aggregator") if not composed(f"aggregator={o}").aggregator.get("prune")])
def test_every_aggregator_scores_what_the_tuned_encoder_sees(aggregator, generator):
    text, tuned_text = random_text(generator, classes=3), random_text(generator, classes=3)
    views, seen, labels = unit(6, 4, 16, generator=generator), unit(6, 4, 16, generator=generator), torch.arange(6) % 3
    scorer = Scorer(text, 10.0, instantiate(without(composed(f"aggregator={aggregator}").aggregator, "facts")), 1.0)
    task = TunedTask(scorer, adapter(), {}, tuned_text, Seen(seen))
    with torch.inference_mode():
        task.test_step((views[2:5], labels[2:5], torch.tensor([2, 3, 4])), 0)
    results = task.results()
    torch.testing.assert_close(results["aggregated"], scorer(views[2:5]))
    torch.testing.assert_close(results["final"], with_text(scorer, tuned_text)(seen[2:5]))


class Seen(OnTheFlyBank):
    """A bank of the views that an encoder saw."""

    positions = range(6)

    def __init__(self, views):
        self.views = views

    def __getitem__(self, row):
        return (self.views[row],)


def test_refuses_what_it_cannot_do():
    with refused("adapter.rank"):
        adapter(rank=0)
    with refused("bank=disk"):
        build(session_of("adapter=clip_lora", "bank=off", "task=few_shot"), shots=1, few_shot_file=None)
