"""Training of the embedded model: exact labels of composed pictures, batches keyed by step, resume after a kill."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from multicrop.config import PACKAGE
from multicrop.crops.pixels import crop_pixels
from multicrop.data.embedded.artwork import TRAINING_VENDORS, load_concepts, training_drawings
from multicrop.encoder import load_encoder
from multicrop.pretrain import checkpoint, data, distil, train
from multicrop.pretrain.captions import train_tokenizer
from multicrop.pretrain.compose import Composer, Composition
from multicrop.pretrain.data import StepSampler, TrainingBatches, sprites_of
from multicrop.pretrain.distil import DistilledClip, SidePictures, Teacher, resized, token_features
from multicrop.pretrain.module import soft_cross_entropy, whitened_patches

TINY = {"batch_size": 8, "width": 32, "layers": 1, "text_width": 32, "text_layers": 1, "phrases": 16, "seed": 3}
DISTILLED = {"teacher": "embedded", "init": "embedded", "train_text": False}


@pytest.fixture(scope="module")
def batches():
    concepts = [concept for concept in load_concepts() if not concept["unseen"]]
    composer = Composer(*sprites_of(training_drawings(), concepts))
    return TrainingBatches(composer, concepts, train_tokenizer(concepts), batch_size=16, phrases=64, seed=3)


def test_a_batch_is_a_function_of_seed_and_step(batches):
    one, again, other = batches[5], batches[5], batches[6]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["images"], other["images"])


def test_labels_say_what_is_visible(batches):
    shown = batches.composer(64, torch.Generator().manual_seed(1))
    assert (shown.visible[shown.objects < 0] == 0).all() and (shown.visible <= 1).all()
    assert ((shown.area > 0) <= (shown.objects >= 0)).all()
    labelled = shown.patches >= 0
    present = (shown.patches[:, :, None] == shown.objects[:, None]).any(-1)
    assert present[labelled].all() and labelled.float().mean() > 0.2
    batch = batches[0]
    assert batch["concept_targets"].shape == (16, 344) and (batch["concept_targets"] > 0).any(1).float().mean() > 0.5


def test_phrase_targets_are_parts_of_a_visible_concept(batches):
    batch = batches[2]
    shown = batches.composer(16, torch.Generator().manual_seed((3 << 32) + 2))
    for row in range(16):
        seen = [batches.concepts[int(o)]["parts"] for o, v in zip(shown.objects[row], shown.visible[row], strict=True) if v > 0.6]
        assert batch["phrase_targets"][row].sum() <= len({part for parts in seen for part in parts})


def test_soft_cross_entropy_is_a_loop(generator):
    logits, targets = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator)
    targets[2] = 0
    rows = [-(targets[b] / targets[b].sum() * (logits[b] - logits[b].exp().sum().log())).sum() for b in (0, 1, 3)]
    torch.testing.assert_close(soft_cross_entropy(logits, targets), torch.stack(rows).mean())


def test_whitened_filters_whiten(generator):
    pixels = torch.nn.functional.interpolate(torch.randn(64, 3, 8, 8, generator=generator), scale_factor=4, mode="bilinear")
    filters = whitened_patches(pixels, 8, 12)
    responses = torch.nn.functional.conv2d(pixels, filters, stride=8).transpose(0, 1).flatten(1)
    covariance = torch.cov(responses)
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 0.05


def test_the_tokenizer_is_the_same_every_time():
    concepts = load_concepts()[:60]
    trained = {train_tokenizer(concepts, vocab_size=700).backend_tokenizer.to_str() for _ in range(8)}
    assert len(trained) == 1


def test_a_batch_without_a_scene_has_no_scene_loss(batches):
    module = train.TinyClip(checkpoint.tiny_config(2910, width=32, layers=1, text_width=32, text_layers=1), steps=1)
    batch = batches[0]
    kept = len(batch["lengths"]) - len(batch["several"])
    none = {"several": batch["several"][:0], "input_ids": batch["input_ids"][:kept], "lengths": batch["lengths"][:kept]}
    assert module.losses(batch | none)["scene"].item() == 0


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "STEPS_PER_EPOCH", 3)
    monkeypatch.setattr(data, "training_drawings", cache(data.training_drawings))  # most of the time of a start
    _, whole = train.pretrain(train.Recipe(steps=7, **TINY), output=tmp_path / "whole", num_workers=0)
    step, calls = train.TinyClip.training_step, []

    def dies(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 5:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(train.TinyClip, "training_step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train.pretrain(train.Recipe(steps=7, **TINY), output=tmp_path / "killed", num_workers=0)
    assert [path.name for path in (tmp_path / "killed").rglob("*") if path.is_file()].count("last.ckpt") == 1
    read, item = [], TrainingBatches.__getitem__
    monkeypatch.setattr(TrainingBatches, "__getitem__", lambda self, step: read.append(step) or item(self, step))
    _, resumed = train.pretrain(train.Recipe(steps=7, **TINY), output=tmp_path / "killed", num_workers=0)
    assert read == [0, 3, 4, 5, 6]  # the first batch again for the patch filters, then the steps that were missing
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    with safe_open(resumed / "model.safetensors", framework="pt") as weights:
        made_from = {name: json.loads(value) for name, value in weights.metadata().items() if name != "format"}
    assert made_from["recipe"]["steps"] == 7 and made_from["vendors"] == list(TRAINING_VENDORS) and len(made_from["data"]) == 32
    encoder = load_encoder(path=str(resumed))
    assert encoder.encode_texts(["tiger face"]).shape == (1, 128)


def test_training_ends_at_its_last_step_and_goes_on_when_more_are_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "STEPS_PER_EPOCH", 3)
    monkeypatch.setattr(data, "training_drawings", cache(data.training_drawings))
    read, item = [], TrainingBatches.__getitem__
    monkeypatch.setattr(TrainingBatches, "__getitem__", lambda self, step: read.append(step) or item(self, step))
    for steps, seen in ((2, [0, 1]), (2, []), (4, [2, 3]), (9, [4, 5, 6, 7, 8])):
        train.pretrain(train.Recipe(steps=steps, **TINY), output=tmp_path, num_workers=0)
        assert read[1:] == seen  # the first batch is read for the patch filters
        assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["done"] == steps
        read.clear()
    assert list(StepSampler(3, 9, lambda: 8)) == [8]  # processes that compose batches ahead compose none after the last


def test_a_kill_while_a_checkpoint_is_written_leaves_the_last_whole_one(tmp_path, monkeypatch):
    kept = checkpoint.AtomicCheckpoints()
    kept.save_checkpoint({"step": torch.tensor(3)}, tmp_path / "checkpoints" / "last.ckpt")

    def torn(self, checkpoint, path, storage_options=None):
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.TorchCheckpointIO, "save_checkpoint", torn)
    with pytest.raises(KeyboardInterrupt):
        kept.save_checkpoint({"step": torch.tensor(4)}, tmp_path / "checkpoints" / "last.ckpt")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt") == {"step": torch.tensor(3)}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_training_starts_from_a_checkpoint_and_exports_an_average_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "training_drawings", cache(data.training_drawings))
    knobs = {"batch_size": 4, "phrases": 8, "seed": 3, "train_text": False, "lr": 1e-2, "precision": "32-true", "init": "embedded"}
    exported = {}
    for share in (0.0, 0.25):
        _, folder = train.pretrain(
            train.Recipe(steps=1, warmup_steps=1, init_share=share, **knobs), output=tmp_path / f"{share}", num_workers=0
        )
        exported[share] = load_file(folder / "model.safetensors")
    shipped = load_file(PACKAGE / "encoder" / "tiny_clip" / "model.safetensors")
    moved = {name for name in shipped if not torch.equal(shipped[name], exported[0.0][name])}
    assert any("vision_model" in name for name in moved) and not any("text" in name for name in moved)
    for name in moved:
        expected = 0.75 * exported[0.0][name].float() + 0.25 * shipped[name].float()
        torch.testing.assert_close(exported[0.25][name].float(), expected, atol=2e-3, rtol=2e-3)
    assert max((exported[0.25][name] - exported[0.0][name]).abs().max() for name in moved) > 1e-3


def test_a_start_that_is_none_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"task.init=.* holds no model.safetensors; pass a folder that task=pretrain exported"):
        checkpoint.Start.from_checkpoint(str(tmp_path))
    with pytest.raises(ValueError, match=r"task.teacher=nowhere holds no model.safetensors"):
        checkpoint.Start.from_checkpoint("nowhere", "task.teacher")


class Shares(Composer):
    """Composes pictures whose pixels are the share of whole scenes in percent, and a number drawn from the generator."""

    def __init__(self):
        self.whole_share = 0.4

    def __call__(self, batch, generator):
        images = torch.full((batch, 3, 96, 96), round(100 * self.whole_share), dtype=torch.uint8)
        images[:, 1] = torch.randint(256, (1,), generator=generator)
        return Composition(
            images, torch.zeros(batch, 4).long(), torch.zeros(batch, 4), torch.zeros(batch, 4), torch.zeros(batch, 36).long()
        )


class Silent(Teacher):
    """Says nothing of the pictures."""

    def __init__(self):
        self.asked = 0

    def batch(self, images):
        self.asked += 1
        return {"images": images}


def test_pictures_come_again_and_whole_scenes_at_the_whole_side_alone(monkeypatch):
    monkeypatch.setattr(distil, "POOL", 3)
    teacher, knobs = Silent(), {"batch_size": 8, "visits": 2, "seed": 1}
    pictures, resumed = (SidePictures(Shares(), asked, [48, 96, 64], **knobs) for asked in (teacher, Silent()))
    seen = [pictures[step]["images"] for step in range(12)]
    assert seen[0][:, 0, 0, 0].tolist() == [0, 0, 0, 40, 40, 40, 0, 0]
    numbers = [int(images[0, 1, 0, 0]) for images in seen]
    rounds = [numbers[start : start + 3] for start in range(0, 12, 3)]
    assert set(rounds[0]) == set(rounds[1]) != set(rounds[2]) == set(rounds[3]) and len(set(numbers)) == teacher.asked == 6
    assert all(torch.equal(resumed[step]["images"], seen[step]) for step in (8, 11))


def test_pictures_reach_a_smaller_side_as_crops_do(batches):
    images = batches.composer(2, torch.Generator().manual_seed(1)).images
    spec = replace(load_encoder(path="tiny").spec, side=48)
    assert torch.equal(resized(images, 48)[1], crop_pixels(images[1], 0, 0, 96, 96, spec=spec))
    assert resized(images, 96) is images


def test_a_student_learns_what_its_teacher_says_at_the_whole_side(batches):
    start, texts = checkpoint.Start.from_checkpoint("embedded", "task.teacher"), ["tiger face", "orange fur", "teapot"]
    encoder, images = load_encoder(path="tiny"), batches.composer(6, torch.Generator().manual_seed(1)).images
    teacher = Teacher(start, texts)
    module, batch = DistilledClip(start, teacher, [48, 96], steps=1), teacher.batch(images)
    with torch.no_grad():
        image, cells = token_features(module.clip, resized(images, 48))
        whole, grid, prompts = encoder.encode_images(images), batch["cells"], encoder.encode_texts(texts)
        terms = module._compared((image, cells), batch["whole"], grid)
    torch.testing.assert_close(image, encoder.encode_images(resized(images, 48)), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch["whole"], whole, atol=1e-5, rtol=0)
    wanted, got = ((35.458370 * views @ prompts.T).softmax(1).log() for views in (whole, image))
    assert terms["text"].item() == pytest.approx((wanted.exp() * (wanted - got)).sum(1).mean().item(), abs=1e-3)
    assert terms["feature"].item() == pytest.approx((image - whole).square().sum(1).mean().item() / 2, abs=1e-5)
    mean = torch.stack([grid[:, :, row : row + 2, column : column + 2].mean((2, 3)) for row in (0, 2, 4) for column in (0, 2, 4)], 2)
    assert terms["patch"].item() == pytest.approx(1 - torch.cosine_similarity(cells.flatten(2), mean).mean().item(), abs=1e-5)
    halves = module.losses(batch)  # the second half is seen as by the teacher, without a loss
    assert halves["feature"].item() == pytest.approx((1 - (image[:3] * whole[:3]).sum(1).mean().item()) / 2, abs=1e-5)
    module.total(halves).backward()
    moved = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert moved and all(name.startswith(("clip.vision_model", "clip.visual_projection")) for name in moved)


def test_a_distilled_image_tower_is_exported_with_the_text_tower_of_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "training_drawings", cache(data.training_drawings))
    knobs = DISTILLED | {"batch_size": 4, "seed": 3, "lr": 1e-2, "precision": "32-true"}
    recipe = train.Recipe(steps=1, warmup_steps=1, sides=[48, 96], **knobs)
    _, folder = train.pretrain(recipe, output=tmp_path, num_workers=0)
    shipped, exported = (load_file(path / "model.safetensors") for path in (PACKAGE / "encoder" / "tiny_clip", folder))
    moved = {name for name in shipped if not torch.equal(shipped[name], exported[name])}
    assert any(".layers.3." in name for name in moved) and all(name.startswith(("vision_model", "visual_projection")) for name in moved)
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        made_from = json.loads(weights.metadata()["recipe"])
    assert (made_from["teacher"], made_from["sides"]) == ("embedded", [48, 96])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sides": [48, 96]}, r"task.sides=\[48, 96\] needs a teacher: set task.teacher=embedded, or task.sides=\[96\]"),
        ({"teacher": "embedded"}, "task.teacher trains the image tower of a checkpoint: set task.init=embedded and task.train_text=false"),
        ({"teacher": "embedded", "init": "embedded"}, "task.train_text=false"),
        (
            {"teacher": "embedded", "init": "embedded", "train_text": False, "sides": [40, 112]},
            r"multiples of 16 px up to 96; got \[40, 112\]",
        ),
    ],
)
def test_sides_and_teachers_that_do_not_go_together_are_refused(knobs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.pretrain(train.Recipe(steps=1, **TINY | knobs), output=tmp_path, num_workers=0)
