"""Texts about the whole of a class: the format, which texts a prompt makes, which of them an aggregator reads, and their audit."""

import copy
import json
import pickle

import pytest
import torch
from conftest import composed, unit
from hydra.utils import instantiate
from refusals import refused

from multicrop.data.embedded import whole
from multicrop.runs import saved_classifier
from multicrop.text import GlobalText, described, prompts_of, text_bank
from multicrop.text.audit.check import check, fix
from multicrop.text.audit.facts import fact_defects
from multicrop.text.audit.whole import global_defects
from multicrop.text.descriptions import HEADER, DescriptionSet, available, load_description_set, read_description_set, with_global_texts
from multicrop.text.descriptions.files import ClassTexts, read_texts
from multicrop.text.make.make import write_file

LOCAL = {"cat": ["a|long tail", "has|whiskers"], "dog": ["a|wet nose"]}
WHOLE = {"cat": ["a small pet curled on a sofa"], "dog": ["a pet on a lead, seen from the side", "a large animal in a park"]}
TABLE = {"set": "x", "descriptions": LOCAL, "global": WHOLE}


@pytest.fixture
def file(tmp_path):
    def write(table=TABLE):
        (tmp_path / "own.json").write_text(json.dumps(table))
        return tmp_path / "own.json"

    return write


@pytest.fixture
def bank(generator):
    """Two classes of one and three prompts of each kind, in mixed order."""
    rows = [["cat", "tail", GlobalText("on a sofa")], ["dog", GlobalText("in a park"), "nose", GlobalText("on a lead"), GlobalText("big")]]
    return text_bank(rows, lambda texts: unit(len(texts), 8, generator=generator))


class TestPrompts:
    def rows(self, file, **knobs):
        return described(["cat", "dog"], {}, template="a {}", file=str(file), **knobs)

    def test_without_being_asked_for_they_are_left_out(self, file):
        assert self.rows(file()) == [
            ["a cat", "cat, which has a long tail", "cat, which has whiskers"],
            ["a dog", "dog, which has a wet nose"],
        ]

    def test_they_follow_the_class_name_after_a_comma_whatever_the_join(self, file):
        expected = [["a cat", "cat, a small pet curled on a sofa"], ["a dog", *(f"dog, {text}" for text in WHOLE["dog"])]]
        assert self.rows(file(), scope="global") == self.rows(file(), scope="global", join="{label}, which has {description}") == expected

    def test_alone_masked_and_bounded_they_stay_marked(self, file):
        texts = {**TABLE, "global": WHOLE | {"cat": ["a cat on a sofa"]}}
        cat, dog = self.rows(file(texts), scope="both", with_label=False, leak="mask", max_descriptions=1)
        assert cat == ["a cat", "long tail", "it on a sofa"] and dog == ["a dog", "wet nose", *WHOLE["dog"]]
        assert [isinstance(text, GlobalText) for text in cat] == [False, False, True]

    @pytest.mark.parametrize(
        ("knobs", "words"),
        [
            ({"description_set": "cub200"}, ["the description set 'cub200' lacks them for 1 of 1 classes: abbey", "sun397"]),
            ({}, ["the data set itself lacks them", "aggregator.text_set=descriptions"]),
        ],
    )
    def test_a_source_without_them_is_named(self, knobs, words):
        with refused(*words):
            described(["abbey"], {"abbey": ["a|stone arch"]}, template="{}", scope="global", **knobs)

    def test_a_class_without_them_is_named(self, file):
        path = file({**TABLE, "global": {"dog": WHOLE["dog"]}})
        with refused(f"'{path}'", "lacks them for 1 of 2 classes: cat"):
            self.rows(path, scope="both")

    def test_texts_of_the_whole_alone_are_no_local_ones(self, file):
        path = file({**TABLE, "descriptions": LOCAL | {"dog": []}})
        assert len(self.rows(path, scope="global")[1]) == 3
        with refused("1 of 2 classes have no descriptions: dog"):
            self.rows(path, scope="both")

    def test_an_unknown_scope(self):
        with refused("prompt.scope is one of local, global, both, got 'whole'"):
            described(["cat"], {"cat": ["tail"]}, template="{}", scope="whole")

    @pytest.mark.parametrize(("text_set", "scope"), [("global", "global"), ("both", "both"), ("local", "local"), ("all", "local")])
    def test_the_prompts_follow_the_aggregator(self, text_set, scope):
        cfg = composed("dataset=scenes", "prompt=descriptions", "aggregator=mean_similarity", f"aggregator.text_set={text_set}")
        assert cfg.prompt.scope == scope
        own = {"cat": ["tail", GlobalText("on a sofa")]}
        (row,) = prompts_of(instantiate(cfg.prompt), ["cat"], own)
        assert row[1:] == {"global": ["cat, on a sofa"], "both": ["tail", "cat, on a sofa"], "local": ["tail"]}[scope]


class TestBank:
    @pytest.mark.parametrize(
        ("text_set", "slots"),
        [("local", [[1], [2]]), ("global", [[2], [1, 3, 4]]), ("both", [[1, 2], [1, 2, 3, 4]]), ("descriptions", [[1, 2], [1, 2, 3, 4]])],
    )
    def test_select(self, bank, text_set, slots):
        chosen = bank.select(text_set)
        for label, row in enumerate(slots):
            assert chosen.prompts[label] == [bank.prompts[label][slot] for slot in row]
            assert torch.equal(chosen.features[label, : len(row)], bank.features[label, row])
            assert chosen.mask[label].tolist() == [True] * len(row) + [False] * (chosen.mask.shape[1] - len(row))
        assert not chosen.features[~chosen.mask].any()

    def test_a_class_without_the_kind_is_named(self):
        rows = [["cat", "tail"], ["dog", "nose", GlobalText("in a park")], ["cow", GlobalText("on a meadow")]]
        bank = text_bank(rows, lambda texts: torch.eye(len(texts)))
        with refused("text_set=global reads global texts", "1 of 3 classes", ": cat. ", "prompt.scope=global"):
            bank.select("global")
        with refused("text_set=both reads local texts", ": cow. "):
            bank.select("both")
        with refused("one of label, descriptions, local, global, both, all, got 'whole'"):
            bank.select("whole")

    def test_an_aggregator_reads_those_alone(self, bank, generator):
        views = unit(2, 3, 8, generator=generator)
        make = instantiate(composed("aggregator=mean_similarity", "aggregator.view_set=all", "aggregator.text_set=global").aggregator)
        means = torch.stack([bank.features[0, 2], bank.features[1, [1, 3, 4]].mean(0)])
        torch.testing.assert_close(make(views, bank, 10.0), 10 * views.mean(1) @ means.T)

    def test_copies_stay_marked(self):
        for made in (copy.deepcopy(GlobalText("a")), pickle.loads(pickle.dumps(GlobalText("a")))):  # noqa: S301
            assert isinstance(made, GlobalText) and made == "a"

    def test_a_saved_classifier_keeps_the_mark(self):
        assert isinstance(saved_classifier._prompt("a", ["a"], {"a"}), GlobalText)
        assert not isinstance(saved_classifier._prompt("a", ["a"], {"b"}), GlobalText)


class TestFormat:
    def test_read_and_written_again(self, tmp_path, file):
        path = file(dict.fromkeys(HEADER, "x") | TABLE)
        source, texts = read_description_set(path), read_texts(path)
        assert source.global_texts == texts.whole == WHOLE and source.descriptions["cat"] == ["long tail", "whiskers"]
        assert all(isinstance(text, GlobalText) for row in [*source.global_texts.values(), *texts.whole.values()] for text in row)
        write_file(tmp_path / "again.json", dict.fromkeys(HEADER, "x") | {"descriptions": texts.texts, "global": texts.whole})
        assert read_description_set(tmp_path / "again.json") == DescriptionSet("x", source.classes, source.descriptions, WHOLE)

    @pytest.mark.parametrize("table", [{"cat": WHOLE["cat"]}, {"cat": "a pet", "dog": ["a pet"]}, {"dog": ["a"], "cat": ["b"]}])
    def test_a_packaged_set_has_them_for_every_class_or_none(self, file, table):
        with refused('"global" of', 'each key of "descriptions"'):
            read_description_set(file(dict.fromkeys(HEADER, "x") | TABLE | {"global": table}))

    def test_a_file_with_unknown_keys(self, file):
        with refused("own.json", '"global" must be an object', "got cow"):
            read_texts(file({**TABLE, "global": {"cow": ["a pet"]}}))

    def test_the_check_and_the_repair_read_them(self):
        texts = ClassTexts({"cat": ["tail"]}, {"cat": "cat"}, {"cat": [GlobalText("a pet  on a sofa"), GlobalText(" ")]})
        assert {finding.defect for finding in check(texts)} == {"whitespace", "empty"}
        (row,) = fix(texts).whole.values()
        assert row == ["a pet on a sofa"] and isinstance(row[0], GlobalText)


class TestEmbedded:
    def test_a_drawing_by_hand(self):
        concept = {"name": "black cat", "group": "animals", "parts": ["black fur", "cat whiskers", "tail of an unusually great length"]}
        assert whole.of_drawing(concept) == "a cartoon from nature on white, with black fur and tail of an unusually great length"
        assert whole.of_drawing({**concept, "name": "nature"}) == "a cartoon on white, with black fur and cat whiskers"

    def test_a_scene_by_hand(self):
        concepts = [
            {"name": "lion", "parts": ["black nose", "brown mane like no other"]},
            {"name": "pear", "parts": ["lion shape", "brown stem"]},
        ]
        assert whole.of_scene(concepts) == "cartoons: black nose and brown stem"


SOUND = "a small bird on a low branch, seen from the side"


class TestAudit:
    def found(self, cat, dog="a large pet with a long muzzle on a lead in a park"):
        source = DescriptionSet("mini", {"cat": "house cat", "dog": "dog"}, {}, {"cat": list(cat), "dog": [dog]})
        return {(finding.key, finding.defect, finding.severity) for finding in global_defects(source)}

    def test_every_packaged_set_has_them(self):
        assert with_global_texts() == available()

    def test_sound_texts(self):
        assert self.found([SOUND]) == set() == self.found([SOUND, "a furry pet asleep on the arm of a sofa"])

    @pytest.mark.parametrize(
        ("texts", "defect"),
        [
            ([SOUND, SOUND + " here", SOUND + " there"], "count"),
            ([], "count"),
            (["a pet on a sofa"], "length"),
            (["very " * 30 + SOUND], "length"),
            ([SOUND + " of a cat"], "leakage"),
            ([SOUND + " and no tail"], "negation"),
            ([SOUND + ", often alone"], "banned"),
        ],
    )
    def test_what_is_put_in_is_found(self, texts, defect):
        assert self.found(texts) == {("cat", defect, "error")}

    def test_two_classes_with_one_text(self):
        assert self.found([SOUND], SOUND.upper()) == {("cat", "duplicate", "error"), ("dog", "duplicate", "error")}

    def test_the_facts_of_the_class_are_checked(self):
        source = load_description_set("fgvc_aircraft")
        wrong = source.global_texts | {"A380": [GlobalText("a giant airliner with two engines under a huge wing")]}
        bad = DescriptionSet(source.name, source.classes, source.descriptions, wrong)
        assert ("A380", "contradicts_facts") in {(finding.key, finding.defect) for finding in fact_defects(bad)}
