"""Every packaged description bank keeps the rules, whatever files lie there; and the audit finds each defect when it is put in."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from refusals import refused

from multicrop.cli import main
from multicrop.text.audit.audit import BLOCKING, Finding, audit, bag, is_part, phrase_defects, stem
from multicrop.text.audit.check import RULES, TokenCounter, check, fix
from multicrop.text.audit.leaks import Leakage, leak_of, leakage, masked
from multicrop.text.audit.whole import global_defects
from multicrop.text.descriptions import FOLDER, HEADER, DescriptionSet, available, load_description_set, phrases_for, read_description_set
from multicrop.text.descriptions.files import ClassTexts, read_classes, read_texts
from multicrop.text.joins import parsed

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


def bank(cat=PHRASES, house=OTHERS, *, name="cat") -> DescriptionSet:
    return DescriptionSet("mini", {"k1": name, "k2": "house"}, {"k1": list(cat), "k2": list(house)})


def found(bank, **limits):
    return {(finding.key, finding.phrase, finding.defect) for finding in audit(bank, **limits)}


def test_the_expected_sets_are_packaged():
    assert available() == sorted(CLASS_LISTS)


@pytest.mark.parametrize("name", available())
class TestPackaged:
    def test_audit_finds_no_error(self, name):
        source = load_description_set(name)
        assert [finding for finding in (*audit(source), *global_defects(source)) if finding.severity == "error"] == []

    def test_header_is_complete(self, name):
        table = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert table["set"] == name
        assert set(HEADER) <= set(table) <= {*HEADER, "names", "descriptions", "global"}
        assert table["licence"] == "Apache-2.0"

    def test_class_list_and_its_order(self, name):
        lines = "\n".join(f"{key}\t{title}" for key, title in load_description_set(name).classes.items())
        assert hashlib.sha256(lines.encode()).hexdigest() == CLASS_LISTS[name]

    def test_one_class_a_line(self, name):
        lines, source = (FOLDER / f"{name}.json").read_text(encoding="utf-8").splitlines(), load_description_set(name)
        assert sum(line.rstrip(",").endswith("]") for line in lines) == len(source.classes) + len(source.global_texts)


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


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("a|pale ears with tufts", True), ("an|orange fur", True), ("has|pale ears", False), ("a|pale chin and lips", False)],
)
def test_audit_finds_an_article_before_a_plural_or_an_uncountable_noun(text, wrong):
    assert [defect for defect, _ in phrase_defects(parsed(text), "cat")] == ["join"] * wrong


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
        load_description_set("zoo")


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
    assert read_description_set(file) == DescriptionSet("x", {"cat": "cat"}, {"cat": PHRASES})
    file.write_text(json.dumps(table | change))
    with pytest.raises(ValueError, match=message):
        read_description_set(file)


@pytest.mark.parametrize(("text", "message"), [("[]", "got a list"), ("{", "readable JSON")])
def test_a_file_that_is_no_bank_is_refused(tmp_path: Path, text, message):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_description_set(tmp_path / "own.json")


def test_a_bank_is_found_by_name_whatever_the_spelling_and_twice_used_names_by_key():
    found = phrases_for("oxford_pets", ["Maine Coon", "american-bulldog", "unicorn"])
    assert list(found) == ["Maine Coon", "american-bulldog"] and all(8 <= len(row) <= 12 for row in found.values())
    assert list(phrases_for("imagenet1k", ["missile", "n03773504", "tench"])) == ["n03773504", "tench"]


CLASSES = ["cat", "Maine Coon", "house finch"]
SOUND = {"cat": ["long tail"], "Maine Coon": ["tufted ears"], "house finch": ["red breast"]}


def checked(table, classes=CLASSES, keys=None, names=None, **knobs):
    texts = ClassTexts(table, names or {key: key for key in table})
    return {(finding.key, finding.phrase, finding.defect) for finding in check(texts, classes, keys, **knobs)}


def test_sound_texts_have_no_defect():
    assert checked(SOUND) == set() and checked(SOUND, None) == set()


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"cat": []}, ("cat", "", "no_texts")),
        ({"cow": ["horns"]}, ("cow", "", "unknown_class")),
        ({"cat": ["fur", ""]}, ("cat", "", "empty")),
        ({"cat": ["fur", " \n"]}, ("cat", " \n", "empty")),
        ({"cat": ["fur", "Fur"]}, ("cat", "Fur", "repeated")),
        ({"cat": ["soft  fur"]}, ("cat", "soft  fur", "whitespace")),
        ({"cat": ["soft_fur"]}, ("cat", "soft_fur", "whitespace")),
        ({"cat": ["I am not sure what you are asking."]}, ("cat", "I am not sure what you are asking.", "refusal")),
        ({"cat": ["As an AI model"]}, ("cat", "As an AI model", "refusal")),
        ({"cat": ["Please provide a photo"]}, ("cat", "Please provide a photo", "refusal")),
        ({"cat": ["tail of a cat"]}, ("cat", "tail of a cat", "names_class")),
        ({"cat": ["cats' eyes"]}, ("cat", "cats' eyes", "names_class")),
        ({"house finch": ["a House-Finch bill"]}, ("house finch", "a House-Finch bill", "names_class")),
        ({"house finch": ["house finches"]}, ("house finch", "house finches", "names_class")),
        ({"house finch": ["bill of finches"]}, ("house finch", "bill of finches", "names_part")),
    ],
)
def test_check_finds_what_is_put_in(change, finding):
    assert checked(SOUND | change) == {finding}


def test_a_class_that_is_missing_or_spelled_in_another_way():
    table = {"cat": ["long tail"], "maine_coon": ["tufted ears"]}
    assert checked(table) == {("house finch", "", "no_texts"), ("maine_coon", "", "spelling")}


def test_names_that_repeat_want_a_stable_key():
    table, names = {"n1": ["a fin"], "n2": ["a plume"]}, {"n1": "missile", "n2": "missile"}
    assert checked(table, ["missile", "missile"], names=names) == {("missile", "", "ambiguous_name")}
    assert checked(table, ["missile", "missile"], ["n1", "n2"], names) == {("missile", "", "repeated_name")}
    assert checked(table, ["missile", "projectile"], ["n1", "n2"], names) == set()


def test_tokens_are_those_of_the_encoder(encoder):
    context = encoder.model.config.text_config.max_position_embeddings
    counter = TokenCounter(lambda texts: [len(ids) for ids in encoder.tokenizer(texts)["input_ids"]], context)
    long = "ball " * context
    assert checked(SOUND | {"cat": ["fur", long.strip()]}, tokens=counter) == {("cat", long.strip(), "too_long")}


def test_severity_is_by_the_documented_rule():
    table = {**dict.fromkeys(RULES, "warning"), **dict.fromkeys(BLOCKING, "error")}
    assert {defect: Finding("", "", defect).severity for defect in RULES} == table
    documented = (ROOT / "docs" / "texts.md").read_text(encoding="utf-8")
    assert all(f"| {defect} | {severity} |" in documented for defect, severity in table.items())


@pytest.mark.parametrize(
    ("text", "masked_text"),
    [
        ("A house finch is small.", "It is small."),
        ("the bill of a house_finch", "the bill of it"),
        ("house finches have short bills", "they have short bills"),
        ("the house finch's bill", "its bill"),
        ("a finch-like head", "a this-like head"),
        ("red breast", "red breast"),
    ],
)
def test_masks_leave_no_leak(text, masked_text):
    assert masked(text, "house finch") == masked_text and leak_of(masked(text, "house finch"), "house finch") is None


def test_leakage_is_counted_by_hand():
    rows = [("cat", ["a cat", "Cats", "fur"]), ("house finch", ["finch bill", "red breast", "house finch tail"])]
    assert leakage(rows) == Leakage(6, 3, 1)


class TestFix:
    def test_mends_what_is_mechanical(self):
        table = {"CAT": [" long_tail", "long  tail", "Long tail", "", "fur"], "maine_coon": ["tufted ears"], "house finch": ["red breast"]}
        mended = fix(ClassTexts(table, {key: key for key in table}), CLASSES)
        assert mended.texts == {"cat": ["long tail", "fur"], "Maine Coon": ["tufted ears"], "house finch": ["red breast"]}
        assert check(mended, CLASSES) == []

    def test_stable_keys_stay(self):
        assert fix(ClassTexts({"n1": ["a  fin"]}, {"n1": "Missile"}), ["missile"], ["n1"]) == ClassTexts(
            {"n1": ["a fin"]}, {"n1": "missile"}
        )


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"\xff\xfe\x00", ["is not JSON or text in UTF-8 (byte 0xff at position 0)", "save it as UTF-8", "{class: [phrase, ...]}"]),
            (b"{", ["is not JSON", "prompt.file wants"]),
            (b"[]", ["JSON object {class: [phrase, ...]}", "holds a list"]),
            (b"{}", ["it has no class"]),
            (b'{"cat": "fur"}', ["that of 'cat' is \"fur\""]),
            (b'{"cat": [3]}', ["that of 'cat' is [3]"]),
            (b'{"missile": ["a"], "missile": ["b"]}', ["1 classes twice (missile)", "stable key", '"names"']),
            (
                b'{"Maine coon": ["a"], "cat": ["c"], "maine_coon": ["b"]}',
                ["1 classes in two ways", "'Maine coon' and 'maine_coon'", "one key"],
            ),
            (b'{"names": {"n1": "cat"}, "descriptions": {"n2": ["fur"]}}', ['"names" must give each key']),
        ],
    )
    def test_bad_texts(self, tmp_path, content, words):
        (tmp_path / "own.json").write_bytes(content)
        with refused("own.json", *words):
            read_texts(tmp_path / "own.json")

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("a.txt", b"\xef\xbb\xbfcat\n\n house finch \n", (["cat", "house finch"], None)),
            ("a.json", b'["cat", "dog"]', (["cat", "dog"], None)),
            ("a.json", b'{"n1": "cat", "n2": "dog"}', (["cat", "dog"], ["n1", "n2"])),
            ("a.json", b'[{"wnid": "n1", "name": "cat"}]', (["cat"], ["n1"])),
            ("a.json", b'{"cat": ["fur"]}', (["cat"], None)),
            ("a.json", b'{"set": "x", "descriptions": {"cat": ["fur"]}}', (["cat"], None)),
        ],
    )
    def test_class_lists(self, tmp_path, name, content, expected):
        (tmp_path / name).write_bytes(content)
        assert read_classes(tmp_path / name) == expected

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("a.txt", b"", ["holds no class"]),
            ("a.txt", b"\xff\xfe", ["is not JSON or text in UTF-8"]),
            ("a.json", b"cat", ["is not JSON ("]),
            ("a.json", b'["cat", 3]', ["something else than names"]),
            ("a.json", b"3", ["holds no class"]),
        ],
    )
    def test_bad_class_lists(self, tmp_path, name, content, words):
        (tmp_path / name).write_bytes(content)
        with refused(name, "one name per line", *words):
            read_classes(tmp_path / name)
        with refused("does not exist", "one name per line"):
            read_classes(tmp_path / "none.json")


class TestCommand:
    def run(self, capsys, *arguments):
        with pytest.raises(SystemExit) as done:
            main(["describe", "audit", *map(str, arguments)])
        printed = capsys.readouterr()
        return done.value.code, printed.out + printed.err

    def test_a_packaged_bank_is_sound(self, capsys):
        code, printed = self.run(capsys, "eurosat", "--dataset", "eurosat")
        assert code == 0 and "10 classes, 108 texts, 10 of them global" in printed and "0 errors" in printed and "0 of 108" in printed

    def test_global_texts_are_counted_in_the_tokens_of_the_encoder(self, capsys):
        code, printed = self.run(capsys, "eurosat", "--model", "tiny", "--examples", "20")
        too_long = next(line for line in printed.splitlines() if "too_long" in line)
        assert code == 1 and "not counted" not in printed and "over 32" in too_long and "aerial view" in too_long

    def test_errors_give_status_1_and_fix_mends(self, tmp_path, capsys, monkeypatch):
        file, fixed = tmp_path / "own.json", tmp_path / "fixed.json"
        file.write_text(json.dumps({"CAT": ["", "fur ", "fur", "a cat's eye"], "house finch": ["red breast"], "Maine Coon": ["tufts"]}))
        (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
        monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
        code, printed = self.run(capsys, file, "--classes", tmp_path / "classes.txt")
        assert code == 1 and "error: empty x 1" in printed and "leakage: 1 of 6 texts name their class (16.7 %)" in printed
        assert "tokens were not counted: pass --model" in printed and "1 errors, " in printed
        code, printed = self.run(capsys, file, "--classes", tmp_path / "classes.txt", "--fix", fixed)
        assert code == 0 and "0 errors, 1 warnings" in printed
        assert json.loads(fixed.read_text()) == {"cat": ["fur", "a cat's eye"], "house finch": ["red breast"], "Maine Coon": ["tufts"]}

    def test_tokens_are_those_of_clip_where_its_tokenizer_is_installed(self, tmp_path, capsys):
        pytest.importorskip("instant_clip_tokenizer")
        (tmp_path / "own.json").write_text(json.dumps({"cat": ["ball " * 75, "ball " * 76]}))  # one token each, a start and an end
        code, printed = self.run(capsys, tmp_path / "own.json")
        assert code == 1 and "too_long x 1" in printed and "78 tokens, over 77" in printed

    def test_a_bank_keeps_its_header(self, tmp_path, capsys):
        table = dict.fromkeys(HEADER, "x") | {"names": {"n1": "CAT"}, "descriptions": {"n1": ["soft  fur"]}}
        (tmp_path / "own.json").write_text(json.dumps(table), encoding="utf-8-sig")
        assert self.run(capsys, tmp_path / "own.json", "--fix", tmp_path / "fixed.json")[0] == 0
        assert json.loads((tmp_path / "fixed.json").read_text()) == table | {"descriptions": {"n1": ["has|soft fur"]}}

    def test_strict_has_the_rules_of_packaged_banks(self, tmp_path, capsys):
        (tmp_path / "own.json").write_text(json.dumps({"cat": ["typical fur"]}))
        assert self.run(capsys, tmp_path / "own.json")[0] == 0
        code, printed = self.run(capsys, tmp_path / "own.json", "--strict")
        assert code == 1 and "error: banned x 1" in printed and "error: count x 1" in printed

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["/nowhere.json"], ["/nowhere.json does not exist", "{class: [phrase, ...]}"]),
            (["eurosat", "--dataset", "zoo"], ["no description set is called 'zoo'"]),
            (["eurosat", "--model", "/nowhere"], ["--model /nowhere has no readable tokenizer"]),
            (["eurosat", "--fix", "/nowhere/out.json"], ["--fix needs a file, got a packaged description set"]),
        ],
    )
    def test_bad_input_ends_with_status_2_and_the_remedy(self, capsys, monkeypatch, arguments, words):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        code, printed = self.run(capsys, *arguments)
        assert code == 2 and all(word in printed for word in words), printed
