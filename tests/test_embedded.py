"""The embedded artwork and model: open licences, no leak from held-out vendors, and numbers that hold."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets as hf_datasets
import pytest
import torch
from conftest import composed
from hydra.utils import instantiate

from multicrop.config import PACKAGE, without
from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.embedded.artwork import EMBEDDED, HELD_OUT_VENDORS, TRAINING_VENDORS, load_concepts, training_drawings
from multicrop.data.few_shot import few_shot_split

OPEN = {"Apache-2.0", "CC-BY-4.0", "MIT"}


def dataset(name, *overrides):
    return instantiate(without(composed(f"dataset={name}", *overrides).dataset, "facts"))


def test_the_pack_opens_with_datasets_and_every_row_names_vendor_and_open_licence(tmp_path):
    pack = hf_datasets.load_dataset("parquet", data_files=str(EMBEDDED / "emoji.parquet"), split="train", cache_dir=str(tmp_path))
    assert pack[0]["image"].size == (96, 96)
    assert set(pack["licence"]) <= OPEN and set(pack["vendor"]) == {*TRAINING_VENDORS, *HELD_OUT_VENDORS}
    attribution = (EMBEDDED / "ATTRIBUTION.md").read_text()
    assert all(vendor in attribution for vendor in set(pack["vendor"])) and all(author in attribution for author in set(pack["author"]))


def test_training_reads_training_vendors_and_seen_concepts_only():
    drawings = training_drawings()
    assert {drawing.vendor for drawing in drawings} == set(TRAINING_VENDORS)
    unseen = {concept["concept"] for concept in load_concepts() if concept["unseen"]}
    assert len(unseen) == 28 and not unseen & {drawing.concept for drawing in drawings}


def test_every_concept_has_local_parts_that_do_not_say_its_name():
    for concept in load_concepts():
        assert 2 <= len(concept["parts"]) <= 5, concept["name"]
        assert not any(concept["name"] in part for part in concept["parts"])
    parts = json.loads((EMBEDDED / "parts.json").read_text())
    assert {c["name"]: c["parts"] for c in load_concepts()} == parts


def test_emoji_splits_keep_vendors_apart():
    emoji = dataset("emoji")
    assert set(emoji.test.domains) == set(HELD_OUT_VENDORS) and set(emoji.train.domains) == set(TRAINING_VENDORS)
    assert len(emoji.class_names) == 344 and len(dataset("emoji", "dataset.unseen=true").class_names) == 28
    assert emoji.test.open(0).mode == "RGB"


def test_scenes_are_seeded_families_and_their_splits_disjoint():
    one, two = dataset("scenes"), dataset("scenes")
    assert list(one.test.open(7).getdata()) == list(two.test.open(7).getdata())
    assert list(one.test.open(7).getdata()) != list(one.train.open(7).getdata())
    assert not {*one.train.ids} & {*one.test.ids} and not {*one.validation.ids} & {*one.test.ids}
    assert len(set(one.class_names)) == 40 and set(Counter(one.test.labels).values()) == {10}
    first = [set(one.descriptions[name]) for name in one.class_names[:4]]
    assert all(len(a & b) == 3 for a in first for b in first if a != b)
    assert dataset("scenes", "dataset.dataset_seed=1").class_names != one.class_names


@pytest.mark.parametrize("knob", ["canvas=120", "n_objects=3", "distractors=2", "background=white", "object_side=[0.2,0.3]"])
def test_every_knob_of_scenes_changes_the_pictures_and_the_fingerprint(knob):
    base, other = dataset("scenes"), dataset("scenes", f"dataset.{knob}")
    assert base.test.fingerprint != other.test.fingerprint
    assert base.test.open(0).tobytes() != other.test.open(0).tobytes()


@pytest.mark.parametrize("name", ["emoji", "scenes"])
def test_few_shot_splits_are_nested_balanced_and_apart(name):
    data = dataset(name)
    one, one_validation = few_shot_split(data, shots=1, seed=3)
    two, validation = few_shot_split(data, shots=2, seed=3)
    assert set(one.ids) < set(two.ids) and set(Counter(one.labels).values()) == {1}
    assert set(one.ids) != set(few_shot_split(data, shots=1, seed=4)[0].ids)
    for support, held_back in ((one, one_validation), (two, validation)):
        assert not set(support.ids) & set(held_back.ids) and set(held_back.labels) == set(range(len(data.class_names)))
        assert not set(support.ids) & set(data.test.ids)


@pytest.mark.parametrize(("images", "shots", "counts"), [(12, 8, (8, 4)), (12, 3, (3, 3)), (2, 1, (1, 1)), (2, 4, (1, 1)), (5, 4, (4, 1))])
def test_validation_takes_at_most_four_images_and_always_one(images, shots, counts):
    """Per class: min(shots, 4) for validation, fewer where there are few, and one is kept for either part."""
    pool = LabelledImages("pool", [str(i) for i in range(2 * images)], [0, 1] * images, open_nothing, "pool")
    data = Dataset("pool", ["a", "b"], {}, pool, pool.subset([]), pool)
    support, validation = few_shot_split(data, shots=shots, seed=0)
    assert [Counter(part.labels) for part in (support, validation)] == [Counter({0: n, 1: n}) for n in counts]


def test_a_validation_split_leaves_all_training_images_to_the_support():
    pool = LabelledImages("pool", [str(i) for i in range(12)], [0, 1] * 6, open_nothing, "pool")
    data = Dataset("pool", ["a", "b"], {}, pool, replace(pool, name="validation"), pool)
    support, validation = few_shot_split(data, shots=6, seed=0)
    assert sorted(support.ids) == sorted(pool.ids) and validation.ids == pool.ids[:8]


def open_nothing(index):
    raise AssertionError(index)


def test_scenes_have_a_fingerprint_of_the_code_that_draws_them(monkeypatch):
    """scenes.py composes, artwork.py decodes: a change of either makes other images of the same ids."""
    before, read = dataset("scenes").test.fingerprint, Path.read_text
    for name in ("scenes.py", "artwork.py"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", lambda path, *a, name=name, **k: read(path, *a, **k) + ("#" if path.name == name else ""))
            assert dataset("scenes").test.fingerprint != before
    assert dataset("scenes").test.fingerprint == before


def test_the_model_is_small_and_reads_without_code(encoder):
    weights = PACKAGE / "encoder" / "tiny_clip" / "model.safetensors"
    assert weights.stat().st_size < 12e6 and not list((PACKAGE / "encoder" / "tiny_clip").glob("*.py"))
    assert type(encoder.model).__name__ == "CLIPModel"
    features = encoder.encode_texts(["tiger face", "a much longer text about a tiger face, orange fur with black stripes"])
    torch.testing.assert_close(features[:1], encoder.encode_texts(["tiger face"]), atol=1e-5, rtol=0)
