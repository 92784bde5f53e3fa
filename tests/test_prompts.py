"""Prompts of every kind: joined by grammar, ensembles as a mean, descriptions with and without the label, random controls, mixtures."""

import copy
import json
import logging
import pickle
import re
from collections import Counter

import inflect
import pytest
import torch
from conftest import composed, options
from hydra.utils import instantiate
from refusals import refused

from multicrop.text import Mean, described, ensemble, mixed, prompts_of, sentences, template, text_bank, waffle
from multicrop.text.controls import vocabulary
from multicrop.text.descriptions import available, load_description_set
from multicrop.text.joins import Phrase, joined, parsed, stored
from multicrop.text.nouns import article, is_plural
from multicrop.text.sources import leak_handled
from multicrop.text.templates import template_set

NAMES = ["cat", "house finch"]
PHRASES = {"cat": ["long furry tail", "whiskers"], "house finch": ["red breast", "made of feathers", "with short legs"]}


def written(path, table) -> str:
    path.write_text(json.dumps(table), encoding="utf-8")
    return str(path)


class TestJoins:
    @pytest.mark.parametrize(
        ("phrase", "expected"),
        [
            ("long furry tail", "X, which has a long furry tail"),
            ("oval ears", "X, which has oval ears"),
            ("orange bill with a black tip", "X, which has an orange bill with a black tip"),
            ("a small, furry body", "X, which has a small, furry body"),
            ("four legs", "X, which has four legs"),
            ("long, thin legs", "X, which has long, thin legs"),
            ("black, white, or brown fur", "X, which has black, white, or brown fur"),
            ("white front", "X, which has a white front"),
            ("hanging baskets", "X, which has hanging baskets"),
            ("outside tables under umbrellas", "X, which has outside tables under umbrellas"),
            ("rotor blades drooping over a pad", "X, which has rotor blades drooping over a pad"),
            ("headlights flush with the wing", "X, which has headlights flush with the wing"),
            ("pale chin and throat", "X, which has a pale chin and throat"),
            ("bus with a round lens", "X, which has a bus with a round lens"),
            ("hour hand", "X, which has an hour hand"),
            ("S-shaped neck", "X, which has an S-shaped neck"),
            ("U-shaped magnet", "X, which has a U-shaped magnet"),
            ("one-piece shell", "X, which has a one-piece shell"),
            ("wings longer than the abdomen", "X, which has wings longer than the abdomen"),
            ("butterfly on a cornflower", "X, which has a butterfly on a cornflower"),
            ("striped", "X, which is striped"),
            ("made of metal", "X, which is made of metal"),
            ("hanging from a branch", "X, which is hanging from a branch"),
            ("often found near water", "X, which is often found near water"),
            ("with short legs", "X, with short legs"),
            ("in the water", "X, in the water"),
            ("has a beak", "X, which has a beak"),
            ("it has four wheels", "X, which has four wheels"),
            ("may be white", "X, which may be white"),
            ("typically has two wheels", "X, which typically has two wheels"),
            ("its legs are long", "X, whose legs are long"),
            ("muzzle longer than it is wide.", "X, which has a muzzle longer than it is wide"),
        ],
    )
    def test_without_a_join_word_the_rules_for_nouns_decide(self, phrase, expected):
        assert joined("X", phrase) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("has|wet nose", "X, which has wet nose"),
            ("a|oval", "X, which has a oval"),
            ("is|furry", "X, which is furry"),
            ("is a|skulker", "X, which is a skulker"),
            ("is the|longest of four", "X, which is the longest of four"),
            ("which|lives in trees", "X, which lives in trees"),
            ("whose|legs are long", "X, whose legs are long"),
            ("with|with legs", "X, with legs"),
            ("maybe|legs", "X, which has maybe|legs"),
        ],
    )
    def test_a_join_word_of_the_file_decides_and_is_no_part_of_the_text(self, text, expected):
        assert joined("X", parsed(text)) == expected and stored(parsed(text)) == text

    def test_copies_and_masked_texts_keep_the_join_word(self):
        phrase = parsed("is|furry")
        for made in (copy.deepcopy(phrase), pickle.loads(pickle.dumps(phrase))):  # noqa: S301
            assert made == "furry" and joined("X", made) == "X, which is furry"
        rows = leak_handled(["house finch"], [[parsed("is the|finch of towns"), parsed("a|red crown")]], "mask", hidden=False)
        assert [stored(text) for text in rows[0]] == ["is the|this of towns", "a|red crown"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("owl", "an"),
            ("cat", "a"),
            ("unicorn", "a"),
            ("unusual fin", "an"),
            ("European robin", "a"),
            ("honest face", "an"),
            ("LED", "an"),
            ("UV lamp", "a"),
            ("8-sided sign", "an"),
            ("18 wheels", "an"),
            ("80 seats", "an"),
            ("737-400", "a"),
            ("BMW coupe", "a"),
            ("MG roadster", "an"),
            ("AUDI coupe", "an"),
            ("F-16A/B", "an"),
        ],
    )
    def test_a_or_an_goes_by_sound(self, text, expected):
        assert article(text) == expected

    @pytest.mark.parametrize(
        ("noun", "plural"),
        [("ears", True), ("lens", False), ("bus", False), ("glass", False), ("teeth", True), ("abdomen", False), ("sideways", False),
         ("scissors", True),
         ("fish", False), ("half-moons", True), ("cat's", False), ("menus", True), ("elytra", True)],
    )  # fmt: skip
    def test_number_of_nouns(self, noun, plural):
        assert is_plural(noun) is plural


# By hand: the prompts that read wrong under the rules of the first version, and some that were right.
REVIEWED = {
    "stanford_cars": [
        "has|headlights clawing up over the front wheel", "an|LED bar in the vents",
        "a|crossed-flags badge on a low nose", "has|scissor doors straight up",
    ],
    "ucf101": ["has|fletching beside cheek", "has|arms overhead making X"],
    "cub200": ["is|perched on a wire", "is a|flat-headed, short-tailed skulker",
        "has|raised crown feathers when alert", "a|slim curved bill prying bark"],
    "fgvc_aircraft": ["has|windows filling a stretched four-abreast tube",
        "is the|longest of the flat-cowl classic twins", "has|doors close to the wing, fore and aft"],
    "imagenet1k": ["has|drool hanging from scaly jaws", "is|curled asleep under a thick brush", "is|halved lengthwise showing seeds"],
    "food101": ["has|grated Parmesan over pieces", "has|truffle aioli in a ramekin"],
}  # fmt: skip


NOUN_ENDS = re.compile(
    r",| (?:with|of|on|in|at|over|under|and|or|by|to|from|down|behind|against|across|around|along|like|between|beside|below|above|inside|"
    r"through|past|amid|without|near|beneath|for|than|as|into|up|outside|towards?|among|off|before|after|that|despite|within|where|"
    r"which|beyond|throughout|onto|out|upon|about|round|atop|each|via|alongside|underneath|half|\w+ing)\b"
)
SINGULAR = {"lens", "canvas", "sideways", "crossroads"}


class TestPackagedJoins:
    def test_every_phrase_brings_a_join_word(self):
        phrases = [phrase for name in available() for row in load_description_set(name).descriptions.values() for phrase in row]
        assert len(phrases) == 26712 and all(isinstance(phrase, Phrase) for phrase in phrases)
        counts = Counter(phrase.join_word for phrase in phrases)
        assert set(counts) == {"a", "an", "has", "is", "is a", "is the"} and counts["is"] < 220

    @pytest.mark.parametrize("name", sorted(REVIEWED))
    def test_a_reviewed_sample(self, name):
        packaged = {stored(phrase) for row in load_description_set(name).descriptions.values() for phrase in row}
        assert [text for text in REVIEWED[name] if text not in packaged] == []

    @pytest.mark.parametrize("name", available())
    def test_no_article_before_a_plural_and_a_or_an_by_sound(self, name):
        """Against inflect itself: what stands before the first preposition, conjunction or participle is no plural."""
        engine, wrong = inflect.engine(), []
        for phrase in (phrase for row in load_description_set(name).descriptions.values() for phrase in row):
            if phrase.join_word in ("a", "an"):
                noun = NOUN_ENDS.split(phrase)[0].split()[-1].lower()
                plural = (
                    noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in SINGULAR and engine.singular_noun(noun)
                )
                counted = "'" in phrase or phrase.split()[0] in ("dozen", "pair")  # the article belongs to the owner or to the number
                wrong += [stored(phrase)] * bool(plural and not counted)
                wrong += [stored(phrase)] * (phrase.join_word != article(phrase) and not phrase.startswith("herb "))
        assert wrong == []


class TestTemplates:
    def test_the_packaged_sets(self):
        sizes = {
            "imagenet1k": 80,
            "imagenet7": 7,
            "cifar10": 18,
            "caltech101": 34,
            "ucf101": 48,
            "dtd": 8,
            "eurosat": 3,
            "stanford_cars": 8,
        }
        assert {name: len(set(template_set(name))) for name in sizes} == sizes
        assert template_set(None) == template_set("imagenet1k") and set(template_set("imagenet7")) < set(template_set("imagenet1k"))
        assert set(available()) <= {name for name in available() if template_set(name)}
        assert all(each.count("{}") == 1 for name in available() for each in template_set(name))

    def test_each_template_is_a_prompt_or_all_are_one_mean(self):
        own = ["a photo of a {}.", "art of the {}."]
        apart = ensemble(NAMES, {}, template="{}", templates=own, average=False)
        assert apart[1] == ["house finch", "a photo of a house finch.", "art of the house finch."]
        assert ensemble(["cat"], {}, template="art of the {}.", templates=own, average=False)[0] == ["art of the cat.", "a photo of a cat."]
        (mean,) = ensemble(["cat"], {}, template="{}", templates=own, average=True)[0]
        assert isinstance(mean, Mean) and mean == "cat" and mean.members == ("a photo of a cat.", "art of the cat.")

    def test_agreement_is_asked_for(self):
        assert template(["okapi"], {}, template="a photo of a {}.") == [["a photo of a okapi."]]
        assert template(["okapi", "cat"], {}, template="A {}.", agree=True) == [["An okapi."], ["A cat."]]
        assert template(["okapi"], {}, template="a photo of the {}.", agree=True) == [["a photo of the okapi."]]

    @pytest.mark.parametrize(
        ("templates", "words"),
        [("zoo", ["'zoo'", "prompt.templates is one of", "imagenet1k"]), ([], ["prompt.templates is empty"]), (["a cat"], ["{} once"])],
    )
    def test_bad_sets(self, templates, words):
        with refused(*words):
            ensemble(NAMES, {}, template="{}", templates=templates, average=True)


class TestMeans:
    def test_a_mean_is_the_normalised_mean_of_its_members(self, encoder):
        texts = ["tiger", "a tiger face", "tail of a tiger"]
        bank = text_bank([["dog", Mean("tiger", texts)], ["tiger"]], encoder.encode_texts)
        total = sum(encoder.encode_texts([text])[0] for text in texts) / 3
        torch.testing.assert_close(bank.features[0, 1], total / total.norm(), atol=1e-5, rtol=0)
        torch.testing.assert_close(bank.features[1, 0], encoder.encode_texts(["tiger"])[0], atol=1e-5, rtol=0)
        assert bank.mask.tolist() == [[True, True], [True, False]]

    def test_means_that_are_shown_alike_stay_apart_and_copies_keep_the_members(self):
        one, other = Mean("cat", ["a", "b"]), Mean("cat", ["a", "c"])
        assert repr([one]) != repr([other])
        for made in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
            assert made.members == ("a", "b") and made == "cat"


class TestDescribed:
    def test_label_first_then_joined_phrases_ragged(self):
        rows = described(NAMES, PHRASES, template="a photo of a {}.")
        assert rows == [
            ["a photo of a cat.", "cat, which has a long furry tail", "cat, which has whiskers"],
            [
                "a photo of a house finch.",
                *(f"house finch, {end}" for end in ("which has a red breast", "which is made of feathers", "with short legs")),
            ],
        ]

    def test_a_join_of_ones_own(self):
        rows = described(["cat"], PHRASES, template="a {}.", join="{prompt} {description}!")
        assert rows == [["a cat.", "a cat. long furry tail!", "a cat. whiskers!"]]

    def test_without_the_label_the_phrases_stand_alone_behind_slot_0(self):
        assert described(["cat"], PHRASES, template="a {}.", with_label=False) == [["a cat.", "long furry tail", "whiskers"]]

    def test_a_file_stands_alone_and_extend_adds(self, tmp_path):
        file = written(tmp_path / "own.json", {"cat": ["soft paws", "whiskers"]})
        knobs = {"template": "{}", "with_label": False}
        assert described(["cat"], PHRASES, file=file, **knobs) == [["cat", "soft paws", "whiskers"]]
        assert described(["cat"], PHRASES, extend=file, **knobs) == [["cat", "long furry tail", "whiskers", "soft paws"]]
        with refused("1 of 2 classes have no descriptions: house finch", "prompt.extend=PATH"):
            described(NAMES, PHRASES, file=file, **knobs)

    def test_a_bank_in_the_packaged_format_is_a_file_too(self, tmp_path):
        file = written(tmp_path / "bank.json", {"set": "x", "names": {"n1": "cat"}, "descriptions": {"n1": ["soft paws"]}})
        assert described(["Cat"], {}, template="{}", file=file, with_label=False) == [["Cat", "soft paws"]]

    def test_stable_keys_tell_classes_of_one_name_apart(self):
        keys = ["n03773504", "n04008634"]
        first, second = described(["missile", "projectile"], {}, template="{}", description_set="imagenet1k", class_keys=keys)
        bank = load_description_set("imagenet1k").descriptions
        assert first[1:] == [joined("missile", text) for text in bank[keys[0]]]
        assert second[1:] == [joined("projectile", text) for text in bank[keys[1]]]
        with refused("2 of 2 classes have no descriptions: missile, missile"):
            described(["missile", "missile"], {}, template="{}", description_set="imagenet1k")

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ({"cat": ["", "fur"]}, ["prompt.file", "empty x 1", "--fix OUT.json"]),
            ({"cat": ["I'm sorry, I cannot help"]}, ["refusal x 1", "I'm sorry", "multicrop describe audit"]),
            ({"cat": []}, ["1 of 1 classes have no descriptions: cat"]),
            ({"dog": ["fur"]}, ["no descriptions: cat", "1 other classes: dog"]),
        ],
    )
    def test_a_file_that_fails_its_audit_stops_the_run(self, tmp_path, table, words):
        with refused(*words):
            described(["cat"], {}, template="{}", file=written(tmp_path / "bad.json", table))

    def test_warnings_are_one_line_with_counts(self, tmp_path, caplog):
        table = {"cat": ["soft  paws", "Fur", "fur"], "cow": ["horns"]}
        described(["cat"], {}, template="{}", file=written(tmp_path / "own.json", table))
        (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert "unknown_class 1" in line and "repeated 1" in line and "whitespace 1" in line


LEAKING = {"house finch": ["A house finch is small.", "House finches' bills are short", "finch-like head", "red breast"]}
KNOBS = {"template": "a {}.", "join": "{label}, which has {description}", "kind": "both", "count": None, "shared": False}


class TestLeaks:
    def rows(self, **knobs):
        return described(["house finch"], LEAKING, template="{}", with_label=False, **knobs)[0][1:]

    def test_keep_measures_and_warns(self, caplog):
        assert self.rows() == LEAKING["house finch"]
        assert "2 of 4 texts name their class (50.0 %), 1 more a word of its name (25.0 %)" in caplog.text
        assert "prompt.leak=drop or mask" in caplog.text

    def test_drop(self):
        assert self.rows(leak="drop") == ["red breast"]

    def test_mask(self):
        assert self.rows(leak="mask") == ["It is small.", "Its bills are short", "this-like head", "red breast"]

    def test_bad_knob_and_nothing_left(self):
        with refused("prompt.leak is one of keep, drop, mask", "'hide'"):
            self.rows(leak="hide")
        with refused("every text of 1 classes names its class: cat", "prompt.leak=mask"):
            described(["cat"], {"cat": ["a cat"]}, template="{}", leak="drop")


class TestSentences:
    def test_as_written(self, tmp_path):
        file = written(tmp_path / "cupl.json", {"cat": ["A cat is a small animal.", "Cats have tails."]})
        assert sentences(["cat"], {}, template="a {}.", file=file) == [["a cat.", "A cat is a small animal.", "Cats have tails."]]
        masked = sentences(["cat"], {}, template="a {}.", file=file, with_label=False, leak="mask")
        assert masked == [["a cat.", "It is a small animal.", "They have tails."]]

    def test_no_file(self):
        with refused("prompt=sentences needs a file", "prompt.file=PATH"):
            sentences(["cat"], {}, template="{}", file=None)


class TestWaffle:
    def rows(self, seed=0, names=NAMES, **knobs):
        return waffle(names, PHRASES, waffle_seed=seed, **(KNOBS | knobs))

    def test_as_many_texts_of_as_many_words_as_the_descriptions(self):
        rows = self.rows(with_label=False)
        assert [len(row) for row in rows] == [3, 4] and [row[0] for row in rows] == ["a cat.", "a house finch."]
        assert len(rows[0][1].split()) == 3 and set(rows[0][1].split()) <= set(vocabulary())
        assert all(not set(row[1:]) & set(PHRASES[name]) for name, row in zip(NAMES, rows, strict=True))
        assert self.rows()[0][1] == f"cat, which has {rows[0][1]}"

    def test_seeded_by_class_not_by_position(self):
        assert self.rows() == self.rows() != self.rows(seed=1)
        assert self.rows(names=NAMES[::-1]) == self.rows()[::-1]

    def test_kinds(self):
        characters = [text for row in self.rows(kind="characters", with_label=False, count=4) for text in row[1:]]
        assert not set(" ".join(characters).split()) & set(vocabulary()) and all(len(text.replace(" ", "")) <= 10 for text in characters)
        assert all(set(text.split()) <= set(vocabulary()) for row in self.rows(kind="words", with_label=False) for text in row[1:])

    def test_shared_and_counted(self):
        rows = self.rows(shared=True, count=5, with_label=False)
        assert rows[0][1:] == rows[1][1:] and len(rows[0]) == 6
        rows = self.rows(count=5, with_label=False)
        assert not set(rows[0]) & set(rows[1])

    @pytest.mark.parametrize(
        ("knobs", "words"),
        [
            ({"kind": "letters"}, ["prompt.kind is one of words, characters, both"]),
            ({"count": 0}, ["prompt.count", "1 or more", "got 0"]),
            ({"names": ["dog"]}, ["1 of 1 classes have no descriptions: dog"]),
            ({"join": "{label}"}, ["prompt.join holds {description}"]),
        ],
    )
    def test_bad_knobs(self, knobs, words):
        with refused(*words):
            self.rows(**knobs)


class TestConfigs:
    def made(self, *overrides, names=NAMES, descriptions=PHRASES, keys=None):
        return prompts_of(instantiate(composed(*overrides).prompt), names, descriptions, keys)

    @pytest.mark.parametrize(
        ("dataset", "expected"),
        [("oxford_pets", "a photo of a pug, a type of pet."), ("dtd", "pug texture."), ("caltech101", "a photo of a pug.")],
    )
    def test_a_data_set_may_bring_its_own_template(self, dataset, expected):
        rows = self.made("prompt=template", "model=clip_vit_b16", f"dataset={dataset}", names=["pug"], descriptions={})
        assert rows == [[expected]]
        own = self.made("prompt=template", "prompt.template='a {}'", f"dataset={dataset}", names=["pug"], descriptions={})
        assert own == [["a pug"]]

    @pytest.mark.parametrize("option", options("prompt"))
    def test_every_option_puts_a_label_prompt_first_and_counts_stay_ragged(self, option, tmp_path):
        file = [f"prompt.file={written(tmp_path / 'cupl.json', PHRASES)}"] if option == "sentences" else []
        rows = self.made(f"prompt={option}", "model=clip_vit_b16", *file)
        assert [str(row[0]) for row in rows] == ["a photo of a cat.", "a photo of a house finch."]
        assert len(rows[1]) == len(rows[0]) + (option not in ("template", "ensemble"))
        assert all(len(set(map(repr, row))) == len(row) for row in rows)

    def test_descriptions_find_the_bank_of_the_data_set_and_the_grammar_joins(self):
        overrides = ["dataset=folder", "dataset.facts.description_set=oxford_pets", "model=clip_vit_b16", "prompt.join=grammar"]
        (row,) = self.made(*overrides, names=["Maine Coon"], descriptions={})
        assert row[1:] == [joined("Maine Coon", text) for text in load_description_set("oxford_pets").descriptions["maine_coon"]]

    def test_the_ensemble_is_that_of_the_data_set(self):
        ((mean,),) = self.made("prompt=ensemble", "dataset=folder", "dataset.facts.description_set=eurosat", names=["forest"])
        assert mean.members == tuple(each.replace("{}", "forest") for each in template_set("eurosat"))

    def test_a_mixture_takes_further_parts(self):
        knobs = ["++prompt.parts.random.count=2", "++prompt.parts.random.kind=words", "prompt.parts.ensemble.templates=imagenet7"]
        (row,) = self.made("prompt=mixed", "+prompt@prompt.parts.random=waffle", *knobs, names=["cat"])
        assert row[:3] == ["cat", "long furry tail", "whiskers"] and isinstance(row[3], Mean) and len(row[3].members) == 7
        assert len(row) == 6 and all(text.startswith("cat, which has ") for text in row[4:])
        with refused("prompt=mixed has no part"):
            mixed(["cat"], {}, parts={})

    def test_stable_keys_reach_the_parts_of_a_mixture_and_functions_without_them_are_left_alone(self):
        bank = ["++prompt.parts.descriptions.description_set=imagenet1k"]
        (row,) = self.made("prompt=mixed", *bank, names=["projectile"], descriptions={}, keys=["n04008634"])
        assert row[1:-1] == load_description_set("imagenet1k").descriptions["n04008634"]
        assert self.made("prompt=template", names=["projectile"], keys=["n04008634"]) == [["projectile"]]

    def test_encoded_by_the_embedded_model(self, encoder):
        bank = encoder.encode_prompts(self.made("prompt=mixed", names=["cat"]))
        torch.testing.assert_close(bank.features[bank.mask].norm(dim=-1), torch.ones(int(bank.mask.sum())))
