"""Subsets of a data set, such as the supports of other seeds and shots, read the images that banks of other subsets hold."""

import importlib
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import pictures, session_of
from PIL import Image
from test_bank import SAMPLER, fill

from multicrop import cli
from multicrop.data.base import file_images
from multicrop.data.few_shot import few_shot_split
from multicrop.data.halves import with_half
from multicrop.data.images import open_image

engine_module = importlib.import_module("multicrop.features.engine")
GROUP = 4  # images per forward pass: that of a shard of four


@pytest.fixture
def images():
    """A data set of 24 images."""
    return pictures(24)


def read(images, indices, encoder, cache, sampler=SAMPLER):
    """The bank of a subset, and the images that were opened to encode it."""
    opened = []
    counted = replace(images, open=lambda index: opened.append(index) or images.open(index))
    return fill(counted.subset(indices), encoder, cache, sampler, shard_images=GROUP), sorted(opened)


def check_same(bank, expected):
    """The bank holds bit by bit what the other one holds."""
    assert bank.images.ids == expected.images.ids and bank.positions == expected.positions and len(bank) == len(expected)
    assert torch.equal(bank.readable, expected.readable) and bank.n_views == expected.n_views
    for found, wanted in zip(bank.tensors(), expected.tensors(), strict=True):
        assert torch.equal(found, wanted)
    for index in range(len(bank.images)):
        assert torch.equal(bank.boxes(index), expected.boxes(index))
    order = list(range(len(bank)))[::-2]
    for found, wanted in zip(bank.batches(order, batch_size=3), expected.batches(order, batch_size=3), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("first", "second", "encoded"),
    [
        (range(12), [3, 20, 5, 0, 21, 22, 7, 23], [20, 21, 22, 23]),
        (range(24), [*range(12, 24), *range(12)], []),  # all images in another order
        (range(12), [11, 2, 7, 4], []),
        (range(8), [0, 20, 2, 3, 4, 5, 6, 7], [0, 2, 3, 20]),  # one image is encoded with three others, as many as share a forward pass
        (range(10), [0, 2, 4, 12, 5, 6, 7, 8, 9, 13, 1], [0, 1, 2, 8, 9, 12, 13]),  # 8 and 9, 13 and 1 are in groups that are not full
        (range(10), [4, 5, 6, 7, 8, 9], []),  # the same last group
        (range(10), [4, 5, 6, 7, 9, 8], [8, 9]),
        (range(8), range(12, 20), list(range(12, 20))),
    ],
)
def test_only_images_that_no_bank_holds_are_encoded(first, second, encoded, images, encoder, tmp_path):
    cache, alone = tmp_path / "shared", tmp_path / "alone"
    assert read(images, first, encoder, cache)[1] == list(first)
    bank, opened = read(images, second, encoder, cache)
    assert opened == encoded and bank.reused == (not encoded) and bank.cost.crops_per_second > 0
    check_same(bank, read(images, second, encoder, alone)[0])
    again, opened = read(images, second, encoder, cache)
    assert not opened and again.reused
    check_same(again, bank)


def test_several_banks_hold_one_support(images, encoder, tmp_path):
    for part in (range(4), range(8, 16), range(20, 24)):
        read(images, part, encoder, tmp_path / "shared")
    wanted = [22, 9, 0, 17, 13, 1, 2, 18]
    bank, opened = read(images, wanted, encoder, tmp_path / "shared")
    assert opened == sorted([17, 18, 22, 9])
    check_same(bank, read(images, wanted, encoder, tmp_path / "alone")[0])
    part = bank.subset(bank.images.subset([6, 1]), [6, 1])
    assert part.reused and torch.equal(part.tensors()[0], bank.tensors()[0][[6, 1]])


def test_what_was_left_for_one_support_is_read_by_another(images, encoder, tmp_path):
    read(images, range(8), encoder, tmp_path)
    read(images, [0, 1, 2, 3, 8, 9, 10, 11], encoder, tmp_path)
    assert read(images, range(8, 12), encoder, tmp_path)[1] == []
    assert len(list(tmp_path.rglob("manifest.json"))) == 2


def test_a_bank_is_opened_only_for_images_that_no_larger_one_holds(images, encoder, tmp_path):
    read(images, range(8), encoder, tmp_path)
    assert read(images, [0, 20, 2, 3, 4, 5, 6, 7], encoder, tmp_path)[1] == [0, 2, 3, 20]
    bank, opened = read(images, [3, 2, 0, 1], encoder, tmp_path)
    assert not opened and len(bank.banks) == 1


def test_a_bank_of_larger_forward_passes_is_not_read(images, encoder, tmp_path):
    fill(images.subset(range(8)), encoder, tmp_path, shard_images=2 * GROUP)
    assert read(images, range(4, 12), encoder, tmp_path)[1] == list(range(4, 12))


@pytest.mark.parametrize("sampler", [partial(SAMPLER, max_side=0.7), partial(SAMPLER, n_crops=4)])
def test_a_bank_of_other_views_is_not_read(sampler, images, encoder, tmp_path):
    read(images, range(8), encoder, tmp_path, sampler)
    assert read(images, range(4, 12), encoder, tmp_path)[1] == list(range(4, 12))


def test_a_bank_of_other_images_with_the_same_ids_is_not_read(images, encoder, tmp_path):
    read(images, range(8), encoder, tmp_path)
    assert read(replace(images, content="other pixels"), range(4, 12), encoder, tmp_path)[1] == list(range(4, 12))


def test_a_file_that_changed_is_encoded_again(encoder, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(12)]

    def drawn(number, seed):
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(paths[number])

    def files():
        return file_images("files", [path.name for path in paths], [0] * 12, paths)

    for number in range(12):
        drawn(number, number)
    read(files(), range(8), encoder, tmp_path / "shared")
    drawn(5, 99)
    bank, opened = read(files(), [4, 5, 6, 7, 3, 2, 1, 0], encoder, tmp_path / "shared")
    assert opened == [4, 5, 6, 7]
    check_same(bank, read(files(), [4, 5, 6, 7, 3, 2, 1, 0], encoder, tmp_path / "alone")[0])
    assert read(files(), [0, 5, 6, 1], encoder, tmp_path / "shared")[1] == []


def test_a_damaged_bank_is_not_read(images, encoder, tmp_path, caplog):
    read(images, range(8), encoder, tmp_path / "shared")
    victim = next((tmp_path / "shared").rglob("shard-00001.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    bank, opened = read(images, [6, 1, 2, 3], encoder, tmp_path / "shared")
    assert opened == [1, 2, 3, 6] and "fails its checksum" in caplog.text
    check_same(bank, read(images, [6, 1, 2, 3], encoder, tmp_path / "alone")[0])


def test_images_that_could_not_be_read_stay_marked(images, encoder, tmp_path):
    broken = replace(images, open=lambda index: open_image(b"no image") if index == 5 else images.open(index))
    read(broken, range(8), encoder, tmp_path)
    bank, opened = read(broken, [2, 5, 1, 0], encoder, tmp_path)
    assert not opened and bank.readable.tolist() == [True, False, True, True] and bank.positions == [0, 2, 3] and len(bank) == 3


def test_the_images_of_a_very_large_subset_are_not_listed(images, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine_module, "LISTED", 7)
    read(images, range(7), encoder, tmp_path)
    read(images, range(7, 15), encoder, tmp_path)
    assert read(images, range(8, 12), encoder, tmp_path)[1] == [8, 9, 10, 11] and read(images, range(4), encoder, tmp_path)[1] == []
    fill(pictures(6), encoder, tmp_path)
    found = {facts["images"]: len(facts.get("image_keys", [])) for facts in map(json.loads, _manifests(tmp_path))}
    assert found == {7: 7, 8: 0, 4: 4, 6: 0}  # a whole set lists none either
    with pytest.raises(SystemExit):
        cli.main(["bank", "list", "--json", "--cache", str(tmp_path)])
    assert "image_keys" not in capsys.readouterr().out


def test_a_sweep_over_seeds_and_shots_encodes_each_training_image_once(tmp_path):
    words = ["dataset.n_classes=4", "crop=random_k16", "trainer.progress=false", f"paths.cache={tmp_path / 'shared'}"]
    data = session_of(*words).dataset
    for shots, seed in [(shots, seed) for shots in (1, 4, 16) for seed in (1, 2, 3)]:
        support, _ = few_shot_split(data, shots=shots, seed=seed)
        bank = session_of(*words).bank(support)
        assert bank.images.ids == support.ids and (bank.reused or (shots, seed) != (16, 2))
    stored = sum(json.loads(manifest)["images"] for manifest in _manifests(tmp_path))
    assert len(data.train) == 64 <= stored <= 64 + 3 * 7  # up to three images per bank fill its last forward pass
    alone = session_of(*words[:-1], f"paths.cache={tmp_path / 'alone'}").bank(support)
    check_same(bank, alone)


def test_supports_of_a_half_of_the_classes_read_those_of_all(tmp_path):
    words = ["dataset.n_classes=4", "trainer.progress=false", f"paths.cache={tmp_path}"]
    session = session_of(*words)
    session.bank(few_shot_split(session.dataset, shots=4, seed=1)[0])
    assert session.bank(few_shot_split(with_half(session.dataset, "new"), shots=4, seed=1)[0]).reused


def _manifests(cache):
    return [path.read_text() for path in cache.rglob("manifest.json")]
