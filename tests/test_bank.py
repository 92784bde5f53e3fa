"""The bank: exact, keyed by content, resumable, safe against faults and against a second process."""

import doctest
import importlib
import json
import multiprocessing.forkserver
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT, pictures
from pictures import Processes
from PIL import Image

from multicrop import crops
from multicrop.config import PACKAGE
from multicrop.crops.pixels import global_pixels
from multicrop.crops.views import image_views
from multicrop.data.images import open_image, shared_pixels
from multicrop.features import ShardFolder, bank_identity, feature_bank
from multicrop.features.view_dataset import ViewCutter, ViewDataset, view_loader
from multicrop.model import MultiCropCLIP

disk_module = importlib.import_module("multicrop.features.disk")
identity_module = importlib.import_module("multicrop.features.identity")
shards_module = importlib.import_module("multicrop.features.shards")
SAMPLER = partial(crops.random, n_crops=3, min_side=0.4, max_side=0.8)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(disk_module, "SHARD_IMAGES", 4)


def fill(images, encoder, cache, sampler=SAMPLER, **knobs):
    return feature_bank(images, sampler, encoder, seed=0, cache=cache, progress=False, **knobs)


def shard_bytes(cache):
    return {path.name: path.read_bytes() for path in sorted(cache.rglob("shard-*.safetensors"))}


def test_features_are_the_models_called_by_hand(encoder, tmp_path):
    images = pictures(6)
    bank = fill(images, encoder, tmp_path)
    views, labels = bank.tensors()
    assert views.shape[:2] == (6, 4) and labels.tolist() == images.labels
    pixels, boxes = image_views(shared_pixels(images.open(4)), images.ids[4], SAMPLER, encoder.spec, 0)
    normalised = (pixels.float() / 255 - torch.tensor(encoder.spec.mean)[:, None, None]) / torch.tensor(encoder.spec.std)[:, None, None]
    with torch.no_grad():
        by_hand = encoder.model.get_image_features(pixel_values=normalised).pooler_output
    torch.testing.assert_close(views[4], by_hand / by_hand.norm(dim=-1, keepdim=True), atol=2e-3, rtol=0)
    assert torch.equal(bank.boxes(4), boxes)


def test_the_global_view_is_the_processors(encoder):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(PACKAGE / "encoder" / "tiny_clip")
    for index in range(4):
        image = pictures(4).open(index)
        expected = processor(image, do_normalize=False, do_rescale=False, return_tensors="pt")["pixel_values"][0].float()
        got = global_pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1), encoder.spec).float()
        assert (got - expected).abs().quantile(0.999) <= 1


def test_a_crop_is_pil_bicubic(encoder):
    image = pictures(3).open(2)
    pixels, boxes = image_views(shared_pixels(image), "a", SAMPLER, encoder.spec, 0)
    side = encoder.spec.side
    for view, box in zip(pixels[1:], boxes[1:].int().tolist(), strict=True):
        expected = np.asarray(image.crop(box).resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
        assert np.quantile(np.abs(view.numpy() - expected), 0.999) <= 1


def test_a_worker_changes_no_bit(encoder, tmp_path):
    fill(pictures(6), encoder, tmp_path / "a")
    fill(pictures(6), encoder, tmp_path / "b", num_workers=2)
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "b")


def test_the_workers_of_all_loaders_are_forked_from_one_server():
    """A worker that is spawned imports the package for seconds, and one that is forked from this process hangs in torch."""
    loaders = [view_loader(Processes(), num_workers=2, accelerator="cpu") for _ in range(2)]
    workers, parents = zip(*(item for loader in loaders for item in loader), strict=True)
    assert len(set(workers)) == 4 and len(set(parents)) == 1 and os.getpid() not in parents
    assert "multicrop.features.view_dataset" in multiprocessing.forkserver._forkserver._preload_modules


def test_images_read_side_by_side_keep_their_places(encoder, monkeypatch):
    """A group read by four threads holds what each image gives alone, in order, with a hole where one cannot be read."""
    whole = pictures(8)
    images = replace(whole, open=lambda i: open_image(b"no image") if i == 5 else whole.open(i))
    monkeypatch.setattr(ViewDataset, "threads", 4)
    group = ViewDataset(images, ViewCutter(crops.as_policy(SAMPLER), encoder.spec, seed=0), group_size=8)[0]
    readable = [i for i in range(8) if i != 5]
    assert group["readable"].tolist() == [i != 5 for i in range(8)]
    alone = [image_views(shared_pixels(whole.open(i)), whole.ids[i], SAMPLER, encoder.spec, 0) for i in readable]
    assert torch.equal(group["pixels"], torch.cat([pixels for pixels, _ in alone]))
    assert torch.equal(group["boxes"][readable], torch.stack([boxes for _, boxes in alone]))


def test_more_crops_answer_for_fewer(encoder, tmp_path):
    many = partial(SAMPLER, n_crops=6)
    wide, few = fill(pictures(5), encoder, tmp_path, many), fill(pictures(5), encoder, tmp_path, SAMPLER)
    assert few.reused and few.n_views == 4
    torch.testing.assert_close(few.tensors()[0], wide.tensors()[0][:, :4], atol=0, rtol=0)
    alone = fill(pictures(5), encoder, tmp_path / "alone", SAMPLER)
    torch.testing.assert_close(few.tensors()[0], alone.tensors()[0], atol=2e-3, rtol=0)


def test_every_ingredient_of_the_key_changes_it(encoder, monkeypatch):
    images = pictures(4)
    base = bank_identity(images, SAMPLER, encoder, 0)
    others = [
        bank_identity(pictures(5), SAMPLER, encoder, 0),
        bank_identity(replace(images, content="another"), SAMPLER, encoder, 0),
        bank_identity(replace(images, ids=["another", *images.ids[1:]]), SAMPLER, encoder, 0),
        bank_identity(images, SAMPLER, encoder, 0, "device"),
        bank_identity(images, partial(SAMPLER, min_side=0.41), encoder, 0),
        bank_identity(images, crops.global_view, encoder, 0),
        bank_identity(images, SAMPLER, encoder, 1),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "precision", "bf16")
        others.append(bank_identity(images, SAMPLER, encoder, 0))
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "spec", replace(encoder.spec, mean=(0.5, 0.5, 0.5)))
        others.append(bank_identity(images, SAMPLER, encoder, 0))
    weight = encoder.model.visual_projection.weight
    with torch.no_grad():
        before = weight[0, 0].clone()
        weight[0, 0] += 1
        others.append(bank_identity(images, SAMPLER, encoder, 0))
        weight[0, 0] = before
    keys = [identity.key for identity in others]
    assert base.key not in keys and len(set(keys)) == len(keys)
    assert bank_identity(images, partial(SAMPLER, n_crops=9), encoder, 0).key == base.key


def test_a_change_of_any_file_that_makes_views_changes_the_key(encoder, monkeypatch, tmp_path):
    for name in ("crops", "data", "encoder", "features"):
        shutil.copytree(PACKAGE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "embedded", "tiny_clip"))
    shutil.copy(PACKAGE / "model.py", tmp_path)
    monkeypatch.setattr(identity_module, "PACKAGE", tmp_path)
    keys = {bank_identity(pictures(4), SAMPLER, encoder, 0).key}
    files = ["data/images.py", "data/corruptions.py", "model.py", "features/view_dataset.py", "features/fill.py"]
    assert {"pixels.py", "resampling.py", "views.py"} <= {path.name for path in (tmp_path / "crops").glob("*.py")}
    files += [f"{path.parent.name}/{path.name}" for name in ("crops", "encoder") for path in (tmp_path / name).glob("*.py")]
    for name in files:
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# changed\n")
        keys.add(bank_identity(pictures(4), SAMPLER, encoder, 0).key)
    assert len(keys) == len(files) + 1


@pytest.mark.parametrize("pattern", identity_module.CODE_FILES)
def test_every_pattern_of_the_code_in_a_key_names_a_file(pattern):
    assert [path for path in PACKAGE.glob(pattern) if path.is_file()]


def test_a_killed_run_continues_and_gives_the_same_bytes(encoder, tmp_path, monkeypatch):
    fill(pictures(10), encoder, tmp_path / "whole")
    step, calls = MultiCropCLIP.predict_step, []

    def dies(self, batch, batch_idx):
        calls.extend(batch["index"].tolist())
        if 6 < len(calls) <= 8:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(MultiCropCLIP, "predict_step", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fill(pictures(10), encoder, tmp_path / "killed")
    assert len(shard_bytes(tmp_path / "killed")) == 1 and not list((tmp_path / "killed").rglob("manifest.json"))
    fill(pictures(10), encoder, tmp_path / "killed")
    assert calls[8:] == [4, 5, 6, 7, 8, 9]
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")


def test_a_flipped_byte_is_found_and_only_that_shard_encoded_again(encoder, tmp_path, monkeypatch, caplog):
    fill(pictures(10), encoder, tmp_path)
    intact = shard_bytes(tmp_path)
    victim = next(tmp_path.rglob("shard-00001.safetensors"))
    spoilt = bytearray(victim.read_bytes())
    spoilt[-5] ^= 1
    victim.write_bytes(spoilt)
    seen, step = [], MultiCropCLIP.predict_step
    monkeypatch.setattr(MultiCropCLIP, "predict_step", lambda self, batch, i: seen.extend(batch["index"].tolist()) or step(self, batch, i))
    fill(pictures(10), encoder, tmp_path)
    assert "shard-00001.safetensors fails its checksum" in caplog.text
    assert seen == [4, 5, 6, 7] and shard_bytes(tmp_path) == intact


def test_a_full_disk_is_said_and_leaves_no_half_file(encoder, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards_module, "save_file", full)
    with pytest.raises(OSError, match=r"paths\.cache"):
        fill(pictures(3), encoder, tmp_path)
    assert not list(tmp_path.rglob("*.partial-*")) and not shard_bytes(tmp_path)


# Four processes fill one bank; each says which shards it wrote. They are forked before any torch operation: a fork after one hangs.
FOUR = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_bank
children = [os.fork() or test_bank.fill_elsewhere(sys.argv[2]) for _ in range(4)]
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def fill_elsewhere(cache):
    """Fill the bank in a forked process, which ends here."""
    from multicrop.encoder import load_encoder

    status = 1
    try:
        torch.set_num_threads(1)
        disk_module.SHARD_IMAGES = 4
        written, write = [], ShardFolder.write
        ShardFolder.write = lambda self, index, tensors: written.append(self.shard(index).name) or write(self, index, tensors)
        fill(pictures(23), load_encoder("tiny"), Path(cache))
        (Path(cache) / f"{os.getpid()}.written").write_text("\n".join(written))
        status = 0
    finally:
        os._exit(status)


def test_four_processes_at_once_encode_each_shard_once(tmp_path):
    done = forked.run([ROOT / "tests", tmp_path], code=FOUR)
    assert done.returncode == 0, done.stderr
    said = list(tmp_path.glob("*.written"))
    written = [shard for path in said for shard in path.read_text().split()]
    assert len(said) == 4 and sorted(written) == [f"shard-{index:05d}.safetensors" for index in range(6)]
    assert json.loads(next(tmp_path.rglob("manifest.json")).read_text())["images"] == 23
    assert not list(tmp_path.rglob("shard-*.lock"))


def test_forward_gives_class_logits_of_pictures(encoder, generator):
    from multicrop.aggregators import global_view

    text = encoder.encode_prompts([["tiger face"], ["hot beverage"], ["grinning face"]])
    images = [pictures(3).open(i) for i in range(3)]
    model = MultiCropCLIP(encoder, SAMPLER, text=text, aggregator=global_view)
    pixels = torch.stack([global_pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1), encoder.spec) for image in images])
    with torch.no_grad():
        expected = encoder.logit_scale * encoder.encode_images(pixels) @ text.label.T
        torch.testing.assert_close(model(images), expected, atol=0.05, rtol=0)  # logits up to 100
    with pytest.raises(ValueError, match="aggregator"):
        MultiCropCLIP(encoder, SAMPLER)(images)


def test_a_view_dataset_item_does_not_depend_on_its_neighbours(encoder):
    images = pictures(5)
    one = ViewDataset(images, ViewCutter(crops.as_policy(SAMPLER), encoder.spec, seed=0), group_size=1)[3]
    group = ViewDataset(images, ViewCutter(crops.as_policy(SAMPLER), encoder.spec, seed=0), group_size=2)[1]
    assert group["index"].tolist() == [2, 3] and torch.equal(one["pixels"], group["pixels"][4:])
    assert torch.equal(one["boxes"][0], group["boxes"][1])


def test_the_example_in_the_docstring_of_the_model_runs():
    found = doctest.testmod(importlib.import_module("multicrop.model"))
    assert found.attempted > 8 and not found.failed
