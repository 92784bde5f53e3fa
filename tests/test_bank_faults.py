"""The bank against what happens to long runs: kills, changed data, little memory, several devices, no disk at all."""

import importlib
import json
import os
from dataclasses import replace
from functools import partial

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT, composed, pictures, session_of
from PIL import Image
from test_bank import SAMPLER, fill, shard_bytes

from multicrop import cli
from multicrop.data.base import StreamedImages
from multicrop.data.images import ImageError
from multicrop.data.sources.folder import folder as image_folder
from multicrop.encoder import Encoder, load_encoder
from multicrop.features import DiskBank, OnePassBank, OnTheFlyBank, feature_bank
from multicrop.features.view_dataset import group_size
from multicrop.model import MultiCropCLIP

disk_module = importlib.import_module("multicrop.features.disk")
# Forks children that fill one bank, kills each after a random time, and starts a new folder whenever one got to the end.
KILLER = """
import importlib, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
importlib.import_module("multicrop.features.disk").SHARD_IMAGES = 4
from conftest import PACKAGE, load_encoder, pictures
from test_bank import fill
encoder = load_encoder("tiny")
top, rng, kills, folder = Path({top!r}), random.Random(5), 0, 0
while kills < 20:
    child = os.fork()
    if child == 0:
        fill(pictures({images}), encoder, top / str(folder))
        os._exit(0)
    time.sleep(rng.uniform(0.05, 0.35))
    os.kill(child, signal.SIGKILL)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    kills, folder = kills + killed, folder + (not killed)
"""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(disk_module, "SHARD_IMAGES", 4)


def test_twenty_kills_at_random_points_lose_no_byte(encoder, tmp_path):
    """SIGKILL at random moments of an encode that starts again each time: what it leaves is what an undisturbed run writes."""
    images = 40
    fill(pictures(images), encoder, tmp_path / "undisturbed")
    killer = KILLER.format(tests=str(ROOT / "tests"), images=images, top=str(tmp_path / "killed"))
    done = forked.run([], code=killer, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.name))
    expected = shard_bytes(tmp_path / "undisturbed")
    for folder in folders:  # shards that survived a kill are whole: the last folder may lack some, never a byte of one
        assert shard_bytes(folder).items() <= expected.items()
    bank = fill(pictures(images), encoder, folders[-1])
    assert len(bank) == images and shard_bytes(folders[-1]) == expected
    assert not list(folders[-1].rglob("*.partial-*"))


def test_two_gloo_processes_write_the_bytes_of_one(encoder, tmp_path):
    words = ["task=encode", "dataset=scenes", "crop=random_k1", "trainer.progress=false"]
    words += ["dataset.n_classes=6", "dataset.test_images=4", "trainer.shard_images=16"]
    environment = os.environ | {"MULTICROP_OUTPUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    for devices in (1, 2):
        knobs = [f"trainer.devices={devices}", f"paths.cache={tmp_path / str(devices)}"]
        done = forked.run([*words, *knobs], env=environment, cwd=tmp_path)  # Lightning starts the second process by its command
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("24 images x 2 views encoded") == 1
    one, two = shard_bytes(tmp_path / "1"), shard_bytes(tmp_path / "2")
    assert len(one) == 2 and one == two


def test_a_changed_and_a_deleted_image_are_noticed(encoder, tmp_path):
    top = tmp_path / "data"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (top / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = np.random.default_rng(index).integers(0, 255, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(top / split / name / f"{index}.png")

    def read():
        return image_folder(root=str(top), class_names=None, test_share=0.5, split_seed=0)

    first = fill(read().test, encoder, tmp_path / "cache")
    assert not first.reused and fill(read().test, encoder, tmp_path / "cache").reused
    victim = top / "test" / "dog" / "1.png"
    Image.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(victim)
    changed = fill(read().test, encoder, tmp_path / "cache")
    assert not changed.reused and not torch.equal(changed.tensors()[0], first.tensors()[0])
    victim.unlink()
    assert len(fill(read().test, encoder, tmp_path / "cache")) == 5


def test_an_image_that_vanishes_in_the_middle_of_a_run_is_named(encoder, tmp_path):
    images = pictures(6)
    path = tmp_path / "gone.png"

    def opened(index):
        if index == 5:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return images.open(index)

    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        fill(type(images)(images.name, images.ids, images.labels, opened, "x"), encoder, tmp_path / "cache")
    assert len(shard_bytes(tmp_path / "cache")) == 1


def test_memory_that_runs_out_halves_the_part(encoder, monkeypatch, tmp_path, caplog):
    whole, sizes = Encoder.encode_images, []

    def small(self, pixels):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"
            )
        return whole(self, pixels)

    expected = fill(pictures(5), encoder, tmp_path / "a").tensors()[0]
    monkeypatch.setattr(Encoder, "encode_images", small)
    found = fill(pictures(5), encoder, tmp_path / "b").tensors()[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert sizes[0] > 2 and set(sizes[sizes.index(2) :]) <= {1, 2} and "do not fit into memory" in caplog.text


def test_an_error_that_is_not_about_memory_is_not_swallowed(encoder, monkeypatch, tmp_path):
    def broken(self, pixels):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Encoder, "encode_images", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        fill(pictures(2), encoder, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_bank_gives_what_the_bank_gives(workers, encoder, tmp_path):
    images, order = pictures(7), [4, 0, 6, 1, 2, 3, 5]
    bank = fill(images, encoder, tmp_path)
    module = MultiCropCLIP(encoder, SAMPLER, seed=0)
    streamed = OnTheFlyBank(images, module, num_workers=workers)
    batches = list(streamed.batches(order, batch_size=9))
    views, labels, indices = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert indices.tolist() == order and labels.tolist() == [images.labels[i] for i in order]
    torch.testing.assert_close(views, bank.tensors()[0][order], atol=1e-3, rtol=0)
    assert torch.equal(streamed.boxes(3), bank.boxes(3)) and streamed[3][1] == bank[3][1]
    assert len(streamed.batches(order, batch_size=9)) == len(batches) and streamed.cost.crops_per_second > 0


def test_without_a_bank_a_run_ends_in_the_same_numbers_and_writes_no_features(tmp_path):
    from multicrop.runs.experiment import run

    accuracy = {}
    for bank in ("disk", "off"):
        paths = [f"paths.output={tmp_path}/{bank}", f"paths.cache={tmp_path}/cache-{bank}"]
        cfg = composed("dataset=emoji", "limit=60", "crop=random_k1", f"bank={bank}", "pictures=1", "trainer.progress=false", *paths)
        accuracy[bank] = run(cfg)
        metrics = json.loads(next((tmp_path / bank).rglob("metrics.json")).read_text())
        assert metrics["images"] == 60 and metrics["crops_per_second"] > 0
    assert accuracy["disk"] == pytest.approx(accuracy["off"], abs=0.02)
    stored = {bank: {path.name for path in (tmp_path / f"cache-{bank}").iterdir()} for bank in accuracy}
    assert "emoji-test" in stored["disk"] and stored["off"] <= {"contents", "encoders", "texts"}


def test_groups_divide_shards():
    for views in (1, 2, 5, 17, 33, 65):
        for accelerator in ("cpu", "gpu"):
            size = group_size(views, accelerator, shard_size=256)
            assert 256 % size == 0 and (size == 1 or size * views <= 1024)
    assert group_size(17, "cpu", shard_size=256) == 4 and group_size(17, "gpu", shard_size=256) == 32


def test_a_support_set_reads_the_bank_of_its_training_set(encoder, tmp_path):
    images = pictures(9)
    whole = fill(images, encoder, tmp_path)
    part = fill(images.subset([7, 2, 5]), encoder, tmp_path)
    assert part.reused and torch.equal(part.tensors()[0], whole.tensors()[0][[7, 2, 5]])
    assert part.tensors()[1].tolist() == [images.labels[i] for i in (7, 2, 5)] and torch.equal(part.boxes(1), whole.boxes(2))


def test_the_command_lists_verifies_and_prunes(encoder, tmp_path, capsys, monkeypatch):
    cache = tmp_path / "banks"
    fill(pictures(9), encoder, cache)

    def command(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main(["bank", *words, "--cache", str(cache)])
        return stop.value.code, capsys.readouterr().out

    code, out = command("list", "--json")
    (entry,) = json.loads(out)
    assert code == 0 and entry["images"] == 9 and entry["bytes"] > 9 * 4 * 128 * 2
    monkeypatch.setenv("COLUMNS", "200")
    assert "tiny_clip" in command("list")[1]
    assert command("verify")[0] == 0
    victim = next(cache.rglob("shard-00001.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    code, out = command("verify")
    assert code == 1 and victim.name in out
    assert command("prune")[0] == 2
    code, out = command("prune", "--unused-days", "0")
    assert code == 0 and "would delete" in out and victim.exists()
    command("prune", "--unused-days", "0", "--yes")
    assert not victim.exists() and "0 banks" in command("list")[1]


@pytest.mark.parametrize("width", [80, 160])
def test_the_list_has_one_line_per_bank_with_its_numbers_whole(tmp_path, capsys, monkeypatch, width):
    from multicrop.files import write_facts

    identity = {"policy": "multicrop.crops.drawn.random {'max_side': 0.9, 'min_side': 0.05, 'side_law': 'uniform'}", "seed": 3}
    for number, name in enumerate(["imagenet_v2_matched_frequency/validation", "[b]/test"]):
        folder = tmp_path / name.replace("/", "-") / f"{number}d9f53d1e76bd8d061e6b66f405b85" / "v65"
        folder.mkdir(parents=True)
        (folder / "shard").write_bytes(b"x" * 9_900_000 * (2 - number))
        write_facts(
            folder / "manifest.json", {"dataset": name, "images": 1_281_167, "views": 65, "model": "clip_vit_b16", "identity": identity}
        )
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        cli.main(["bank", "list", "--cache", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    first, second = (next(line for line in lines if f"{number}d9f53d1" in line) for number in (0, 1))
    assert all(len(line.rstrip()) <= width for line in (first, second)) and len(lines) == 5
    assert "1281167" in first and " 65 " in first and "19.8 MB" in first and "0.0 d ago" in first and "[b]/test" in second
    assert ("random, seed 3, max_side=0.9 min_side=0.05 side_law=uniform" in first) == (width == 160)
    assert first.startswith("imagenet_v2_matched_frequency/validation" if width == 160 else "imagenet") and "clip_vi" in first


def test_what_cannot_fill_a_bank_is_refused(tmp_path):
    from multicrop.runs.experiment import run

    cfg = composed("trainer.devices=2", f"paths.output={tmp_path}", f"paths.cache={tmp_path}/cache")
    with pytest.raises(ValueError, match="task=encode"):
        run(cfg)
    with pytest.raises(ValueError, match="emoji has no validation images"):  # before the training images are encoded
        run(composed("task=encode", "dataset=emoji", "task.splits=[train,validation]", f"paths.cache={tmp_path}/cache"))
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="power of two"):
        fill(pictures(2), load_encoder("tiny"), tmp_path, shard_images=100)
    with pytest.raises(ValueError, match="disk, off"):
        session_of("bank=memory").bank(pictures(2))
    with pytest.raises(ValueError, match="worker, device"):
        session_of("trainer.cut=anywhere").bank(pictures(2))


def streamed(images, unreadable=()):
    """The images as a stream, of which some cannot be read."""

    def source(part, parts):
        for i in range(part, len(images), parts):
            yield images.ids[i], images.labels[i], _unreadable if i in unreadable else partial(images.open, i)

    return StreamedImages("s", ["a", "b"], source, "f")


def banks_of(images, encoder, cache, unreadable):
    """A bank of each kind of the same images."""
    whole = replace(images, open=lambda i: _unreadable() if i in unreadable else images.open(i))
    knobs = {"seed": 0, "cache": cache, "progress": False}
    return {
        DiskBank: feature_bank(whole, SAMPLER, encoder, storage="disk", **knobs),
        OnTheFlyBank: feature_bank(whole, SAMPLER, encoder, storage="off", **knobs),
        OnePassBank: feature_bank(streamed(images, unreadable), SAMPLER, encoder, storage="off", **knobs),
    }


def test_the_three_banks_give_the_same_features(encoder, tmp_path):
    images = pictures(11)
    banks, readable = banks_of(images, encoder, tmp_path, unreadable=(4,)), [i for i in range(11) if i != 4]
    expected = fill(images, encoder, tmp_path / "all").tensors()[0][readable]
    for kind, bank in banks.items():
        views, labels, indices = (torch.cat(parts) for parts in zip(*bank.batches(batch_size=3), strict=True))
        torch.testing.assert_close(views, expected, atol=1e-3, rtol=0)
        assert type(bank) is kind and (bank.reorderable, bank.can_reopen) == ((False, False) if kind is OnePassBank else (True, True))
        assert indices.tolist() == readable and labels.tolist() == [images.labels[i] for i in readable]
        assert bank.images.ids == images.ids and len(bank) == 10 and bank.readable.tolist() == [i != 4 for i in range(11)]
        assert bank.labels == [images.labels[i] for i in bank.positions] and bank.n_views == 4 and not bank.reused
        assert bank.cost.seconds > 0 and bank.cost.crops_per_second > 0
    assert banks[DiskBank].positions == banks[OnePassBank].positions == readable
    for kind in (DiskBank, OnTheFlyBank):
        assert torch.equal(banks[kind].tensors()[1], labels)
        order = [7, 2, 5]
        views, _, indices = (torch.cat(parts) for parts in zip(*banks[kind].batches(order, batch_size=3), strict=True))
        assert indices.tolist() == [banks[kind].positions[row] for row in order]
        torch.testing.assert_close(views, torch.stack([banks[kind][row][0] for row in order]), atol=1e-3, rtol=0)


def test_a_bank_on_disk_gives_batches_of_the_size_asked_for(encoder, tmp_path):
    bank = fill(pictures(7), encoder, tmp_path)
    assert [len(labels) for _, labels, _ in bank.batches(batch_size=3)] == [3, 3, 1]


def test_images_that_an_earlier_process_could_not_read_are_marked(encoder, tmp_path):
    banks = banks_of(pictures(5), encoder, tmp_path, unreadable=())
    banks[OnTheFlyBank].mark_unreadable([3])
    assert banks[OnTheFlyBank].readable.tolist() == [True, True, True, False, True] and len(banks[OnTheFlyBank]) == 4
    assert banks[OnTheFlyBank].positions == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="streaming=false"):
        banks[OnePassBank].mark_unreadable([3])


def test_a_stream_is_read_once_in_its_own_order(encoder, tmp_path):
    bank = feature_bank(streamed(pictures(3)), SAMPLER, encoder, storage="off", seed=0, cache=tmp_path)
    with pytest.raises(ValueError, match="order of 2 images"):
        bank.batches([1, 0], batch_size=1)
    views, labels = bank.tensors()
    assert views.shape[:2] == (3, 4) and labels.tolist() == pictures(3).labels
    with pytest.raises(ValueError, match="has been read"):
        list(bank.batches(batch_size=1))
    for refused in (lambda: bank.images.open(0), lambda: bank[0], lambda: bank.boxes(0)):
        with pytest.raises(ImageError, match="streaming=false"):
            refused()
    with pytest.raises(ValueError, match="bank=off"):
        session_of().bank(streamed(pictures(3)))
    with pytest.raises(ValueError, match="bank=off"):
        feature_bank(streamed(pictures(3)), SAMPLER, encoder, storage="disk", seed=0, cache=tmp_path)


def test_a_bank_that_encodes_while_it_is_read_can_cut_on_the_device(encoder, tmp_path):
    for images in (pictures(5), streamed(pictures(5))):
        where = {"storage": "off", "seed": 0, "cache": tmp_path}
        by_worker, by_device = (feature_bank(images, SAMPLER, encoder, cut=cut, **where).tensors()[0] for cut in ("worker", "device"))
        assert not torch.equal(by_worker, by_device) and (by_worker * by_device).sum(-1).min() > 0.999


@pytest.mark.parametrize("knobs", [{"storage": "memory"}, {"cut": "anywhere"}])
def test_an_unknown_way_to_store_or_cut_is_refused(knobs, encoder, tmp_path):
    with pytest.raises(ValueError, match=next(iter(knobs.values()))):
        feature_bank(pictures(2), SAMPLER, encoder, **({"storage": "off", "seed": 0, "cache": tmp_path} | knobs))


def _unreadable():
    raise ImageError("broken")
