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
from multicrop.data.embedded.artwork import EMBEDDED, HELD_OUT_VENDORS, TRAINING_VENDORS, load_concepts, load_drawings, training_drawings
from multicrop.data.embedded.pack import iconify_drawings
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
    assert set(emoji.test.domains) == {"fluent-3d", "noto-v1"} and set(emoji.train.domains) == set(TRAINING_VENDORS)
    far = dataset("emoji", "dataset.vendors=[streamline]")
    assert set(far.test.domains) == {"streamline"} and far.train.ids == emoji.train.ids
    assert len(emoji.class_names) == 344 and len(dataset("emoji", "dataset.unseen=true").class_names) == 28
    assert emoji.test.open(0).mode == "RGB"


@pytest.mark.parametrize("vendor", ["noto", "fxemoji"])
def test_a_left_out_vendor_makes_the_validation_images_alone(vendor):
    emoji = dataset("emoji", f"dataset.leave_out={vendor}")
    assert set(emoji.validation.domains) == {vendor} and set(emoji.train.domains) == {*TRAINING_VENDORS} - {vendor}
    scenes, default = dataset("scenes", f"dataset.leave_out={vendor}", "dataset.n_classes=4"), dataset("scenes", "dataset.n_classes=4")
    for part, vendors in ((scenes.validation, {vendor}), (scenes.train, {*TRAINING_VENDORS} - {vendor})):
        assert {drawing.vendor for drawings in part.open.sprites.values() for drawing in drawings} == vendors
    assert not {*scenes.train.ids, *scenes.validation.ids} & {*default.train.ids, *default.validation.ids}


def test_the_far_vendor_leaves_the_related_scenes_as_they_are():
    """The classes of noto-v1 and fluent-3d are the same; a concept that streamline lacks stays among them."""
    near, middle, far = (dataset("scenes", f"dataset.vendor={vendor}") for vendor in HELD_OUT_VENDORS)
    assert near.class_names == middle.class_names != far.class_names and len(set(far.class_names)) == 40
    drawn = {d.concept for d in load_drawings(("streamline",), unseen=False)}
    assert set(far.test.open.sprites) <= drawn and not set(middle.test.open.sprites) <= drawn


@pytest.mark.parametrize("knob", ["emoji dataset.vendors=[noto]", "scenes dataset.vendor=noto", "emoji dataset.leave_out=noto-v1"])
def test_a_vendor_of_another_role_names_those_that_fit(knob):
    """A training vendor is no test vendor, and a held-out one is never chosen on."""
    fitting = "training vendors noto, twemoji" if "leave_out" in knob else "held-out vendors fluent-3d, noto-v1, streamline"
    with pytest.raises(Exception, match=rf"is one of the {fitting}.* got '?noto"):
        dataset(*knob.split())


def test_scenes_are_seeded_families_and_their_splits_disjoint():
    one, two = dataset("scenes"), dataset("scenes")
    assert list(one.test.open(7).getdata()) == list(two.test.open(7).getdata())
    assert list(one.test.open(7).getdata()) != list(one.train.open(7).getdata())
    assert not {*one.train.ids} & {*one.test.ids} and not {*one.validation.ids} & {*one.test.ids}
    assert len(set(one.class_names)) == 40 and set(Counter(one.test.labels).values()) == {10}
    first = [set(one.descriptions[name][:4]) for name in one.class_names[:4]]
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


@pytest.mark.parametrize(
    ("images", "shots", "counts"), [(20, 8, (8, 4)), (12, 8, (8, 4)), (12, 3, (3, 3)), (2, 1, (1, 1)), (2, 4, (1, 1)), (5, 4, (4, 1))]
)
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


def icons_of(folder, names, codes):
    (folder / "icons.json").write_text(json.dumps({"icons": {name: {"body": f'<path id="{name}"/>'} for name in names}}))
    (folder / "chars.json").write_text(json.dumps(codes))
    concepts = [{"concept": name, "name": name} for name in ("bear", "pizza", "weary face", "tiger face", "tiger", "grapes")]
    return {concept: svg.split('"')[5] for concept, svg in iconify_drawings(folder, concepts)}


def test_a_set_without_code_points_is_matched_by_plain_names(tmp_path):
    names = ["bear-face-1", "pizza-1", "pizza-2", "weary-face-1", "weary-face-2", "tiger", "tiger-face", "pouting-face"]
    drawn = icons_of(tmp_path, names, {})
    assert drawn == {"bear": "bear-face-1", "pizza": "pizza-1", "weary face": "weary-face-1", "tiger face": "tiger-face", "tiger": "tiger"}


def test_a_set_with_code_points_is_matched_by_its_own_names_alone(tmp_path):
    assert icons_of(tmp_path, ["bear-face-1", "pizza-1", "grapes", "tiger-face"], {"1f0": "grapes"}) == {
        "grapes": "grapes",
        "tiger face": "tiger-face",
    }


def test_streamline_is_a_test_vendor_without_the_flag_of_turkey():
    drawn = {drawing.name for drawing in load_drawings(("streamline",), unseen=False)}
    assert len(drawn) == 167 and {"bear", "pizza", "weary face", "tiger face", "tiger"} <= drawn and "turkey" not in drawn
    assert "turkey" in {concept["name"] for concept in load_concepts()}
    assert "streamline" in HELD_OUT_VENDORS and "streamline" not in {drawing.vendor for drawing in training_drawings()}
