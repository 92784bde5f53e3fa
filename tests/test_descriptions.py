"""Every packaged description bank keeps the rules, whatever files lie there; and the audit finds each defect when it is put in."""

import hashlib
import json
from pathlib import Path

import pytest

from multicrop.descriptions import FOLDER, HEADER, DescriptionBank, available, load_bank, phrases_for, read_bank
from multicrop.descriptions.audit import Finding, audit, bag, is_part, stem

# sha256 of the class list, a line "key<tab>name" for each class in order; taken once from the lists that the banks were written for.
CLASS_LISTS = {
    "caltech101": "c8d986dff0c162826bac104a594fec480c520f1cc5a72aa0ed0b0f08c56d44b5",
    "cifar10": "bce20e8eecfa7e7c86fc2de7837ad9d8fffd827f108ce105c9d8bbd02b0c0e48",
    "cifar100": "f1b62771eb754fbf8effe2a96b6494121ab442f58d20d1dd5785a161a47724a1",
    "cub200": "bac030282e5ea5aa922bcfb6d3d3661da4b83e24d04edcd45ef366746c10420c",
    "dtd": "0364baadd0b27dc079ee4b36f4895f016f7f84f090b4377c2b39437f05711d24",
    "eurosat": "c846c20bf69320ab47cbca73654364132af46256d6a8346357fc9b97623b76b3",
    "fgvc_aircraft": "3f08451af93bbe1bedc238afb4716e0d45937d8e7649f6e88cad222ceeb2221f",
    "flowers102": "e48ec23129aae923112b0de6aa2fd517f6ff0d25e5df960c9eec30509e01d1ab",
    "food101": "39e7fb9ee121e3b0d7b5d4b14bd479464bb4b9bec3987d19792a29586281b8e2",
    "imagenet1k": "c2e6b3aab7524eace5b791b57862af87af14ca130ca7aa043d7d39986b59dea9",
    "oxford_pets": "d5b30fcf9b682c38de4f58eed0106eb9b6220a792f4fd5008999385cdcd125fc",
    "places365": "58322b587d46f0f5e9ac9265aa47ff74b331050bd59bd0b6f6e39e255144c62e",
    "stanford_cars": "a488da70ef851ebfa9ebdecbd1bd848a31fda805ea5318483337a526ecd6f9c7",
    "sun397": "a223055c8303251f0f5223cf13a7c77a41b3221bb9520c348d52a9ecd352abad",
    "ucf101": "0974411f8949565590f0f451f973c71c351b9d2715e8a9dac8d43ab8627aba8d",
}
PHRASES = [
    "long furry tail", "round amber eyes", "pointed upright ears", "pale whiskered muzzle",
    "striped flanks", "soft grey underside", "padded paws with claws", "pink triangular nose",
]  # fmt: skip
OTHERS = [
    "steep tiled roof", "narrow sash windows", "brick chimney stack", "painted front porch",
    "wooden shutters", "gutter along the eaves", "stone steps and rail", "gabled dormer",
]  # fmt: skip


def bank(cat=PHRASES, house=OTHERS, *, name="cat") -> DescriptionBank:
    return DescriptionBank("mini", {"k1": name, "k2": "house"}, {"k1": list(cat), "k2": list(house)})


def found(bank, **limits):
    return {(finding.key, finding.phrase, finding.defect) for finding in audit(bank, **limits)}


def test_the_expected_sets_are_packaged():
    assert available() == sorted(CLASS_LISTS)


@pytest.mark.parametrize("name", available())
class TestPackaged:
    def test_audit_finds_no_error(self, name):
        assert [finding for finding in audit(load_bank(name)) if finding.severity == "error"] == []

    def test_header_is_complete(self, name):
        table = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert table["set"] == name
        assert set(HEADER) <= set(table) <= {*HEADER, "names", "descriptions"}
        assert table["licence"] == "Apache-2.0"

    def test_class_list_and_its_order(self, name):
        lines = "\n".join(f"{key}\t{title}" for key, title in load_bank(name).classes.items())
        assert hashlib.sha256(lines.encode()).hexdigest() == CLASS_LISTS[name]

    def test_one_class_a_line(self, name):
        lines = (FOLDER / f"{name}.json").read_text(encoding="utf-8").splitlines()
        assert sum(line.rstrip(",").endswith("]") for line in lines) == len(load_bank(name).classes)


def test_a_sound_bank_has_no_finding():
    assert audit(bank()) == []


@pytest.mark.parametrize(
    ("phrase", "defect"),
    [
        ("whiskers", "length"),
        ("a very long tail that bends at its tip", "length"),
        ("face of a cat", "leakage"),
        ("cats' slit pupils", "leakage"),
        ("short muzzle without stripes", "negation"),
        ("eyes that aren't round", "negation"),
        ("distinctive ruff of fur", "banned"),
        ("tailless rump", "privative"),
        ("wrinkle-free face", "privative"),
        ("Pointed upright ears", "duplicate"),
        ("upright ear, pointed", "near_duplicate"),
    ],
)
def test_audit_finds_what_is_put_in(phrase, defect):
    assert found(bank([*PHRASES, phrase])) == {("k1", phrase, defect)}


@pytest.mark.parametrize("size", [7, 13])
def test_audit_counts_phrases(size):
    more = ["curled lip", "dark brow", "bent knee", "white chin", "flat crown"]
    assert found(bank([*PHRASES, *more][:size])) == {("k1", "", "count")}


@pytest.mark.parametrize(
    ("name", "phrase", "defect"),
    [
        ("Black-billed Cuckoo", "thin curved bill", None),
        ("Black-billed Cuckoo", "black crown feathers", None),
        ("Black-billed Cuckoo", "thin-billed face", "leakage"),
        ("Bronzed Cowbird", "bronze gloss on head", "leakage"),
        ("baby_back_ribs", "charred rib ends", "leakage"),
        ("race car", "racing stripe on nose", "leakage"),
        ("basketball", "orange ball over a rim", "part_of_name"),
        ("church-outdoor", "wooden door panels", None),
        ("establishment", "round tables", None),
    ],
)
def test_leakage_goes_by_the_content_words_of_the_name(name, phrase, defect):
    assert found(bank([*PHRASES[:7], phrase], name=name)) == ({("k1", phrase, defect)} if defect else set())


def test_near_duplicates_across_classes_name_each_other():
    near = [finding for finding in audit(bank(house=[*OTHERS, "amber round eye"])) if finding.defect == "near_duplicate"]
    assert near == [
        Finding("k1", "round amber eyes", "near_duplicate", "house: amber round eye"),
        Finding("k2", "amber round eye", "near_duplicate", "cat: round amber eyes"),
    ]
    assert {finding.severity for finding in near} == {"warning"}


def test_common_phrases_and_skeletons_depend_on_their_limits():
    shared = bank(house=[*OTHERS, "striped flanks"])
    assert ("", "striped flanks", "common") in found(shared)
    assert ("", "striped flanks", "common") not in found(shared, max_share=1.0)
    filled = bank([f"patch of {colour} fur" for colour in ("tan", "buff", "cream", "rust", "slate", "sand", "fawn", "sable")])
    assert ("", "patch of * fur", "skeleton") in found(filled)
    assert ("", "patch of * fur", "skeleton") not in found(filled, max_skeleton=0.5)


@pytest.mark.parametrize(
    ("one", "other"),
    [("leaves", "leaf"), ("berries", "berry"), ("stripes", "striped"), ("spots", "spotted"), ("boxes", "box"), ("knives", "knife")],
)
def test_inflections_have_one_stem(one, other):
    assert stem(one) == stem(other)


def test_bags_keep_what_is_said_twice():
    assert bag("white on white wings") != bag("white on wings")
    assert bag("wings, white on white") == bag("white wing on white")


def test_part_wants_four_letters_at_an_edge():
    assert is_part("ball", "basketball") and is_part("hood", "hooded")
    assert not is_part("car", "carpet") and not is_part("tabl", "establishment")


def test_an_unknown_bank_names_the_packaged_ones():
    with pytest.raises(ValueError, match=r"called 'zoo'.*eurosat"):
        load_bank("zoo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": " "}, "header fields .*; add licence"),
        ({"descriptions": {"cat": "furry"}}, r'"descriptions": \{class'),
        ({"names": {"dog": "dog"}}, '"names" of .* in the same order'),
    ],
)
def test_a_faulty_file_is_told_what_it_lacks(tmp_path: Path, change, message):
    table = dict.fromkeys(HEADER, "x") | {"descriptions": {"cat": PHRASES}}
    file = tmp_path / "own.json"
    file.write_text(json.dumps(table))
    assert read_bank(file) == DescriptionBank("x", {"cat": "cat"}, {"cat": PHRASES})
    file.write_text(json.dumps(table | change))
    with pytest.raises(ValueError, match=message):
        read_bank(file)


@pytest.mark.parametrize(("text", "message"), [("[]", "got a list"), ("{", "readable JSON")])
def test_a_file_that_is_no_bank_is_refused(tmp_path: Path, text, message):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_bank(tmp_path / "own.json")


def test_a_bank_is_found_by_name_whatever_the_spelling_and_twice_used_names_by_key():
    found = phrases_for("oxford_pets", ["Maine Coon", "american-bulldog", "unicorn"])
    assert list(found) == ["Maine Coon", "american-bulldog"] and all(8 <= len(row) <= 12 for row in found.values())
    assert list(phrases_for("imagenet1k", ["missile", "n03773504", "tench"])) == ["n03773504", "tench"]
