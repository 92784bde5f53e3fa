"""Fact tables: what phrases claim, what contradicts a table, the packaged tables, planted errors, and `multicrop describe show|page`."""

import csv
import json
import sys
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from multicrop.cli import main
from multicrop.text.audit.facts import EVERY, FACTS, TOLD_APART, fact_defects, load_fact_table, with_facts
from multicrop.text.audit.page import page
from multicrop.text.audit.show import likeness
from multicrop.text.descriptions import DescriptionSet, load_description_set
from multicrop.text.joins import GlobalText

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments.descriptions import planted

SETS = ["cub200", "fgvc_aircraft", "stanford_cars"]


def claims(name, key, phrase):
    table = load_fact_table(name)
    return [(claim.attributes, sorted(claim.values)) for claim in table.lexicon.claims(phrase, table.facts[key])]


def test_the_fine_grained_sets_have_facts():
    assert with_facts() == SETS
    with pytest.raises(ValueError, match=r"'eurosat' has no fact table; those of cub200, fgvc_aircraft"):
        load_fact_table("eurosat")


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("four or six blades", [(("blades",), ["4"]), (("blades",), ["6"])]),
        ("two cabin doors and one hatch per side", [(("doors",), ["2"]), (("exits",), ["1"]), (("hatches",), ["yes"])]),
        ("pair of exits", [(("exits",), ["2"])]),
        ("half a dozen windows", []),
        ("two square intakes under four engines", [(("engines", "side_engines"), ["4"])]),  # "two" ends before "under"
        ("two four-wheel bogies", [(("leg_wheels",), ["4"])]),
    ],
)
def test_a_number_counts_the_first_known_noun_after_it(phrase, expected):
    assert claims("fgvc_aircraft", "A340-600", phrase) == expected


@pytest.mark.parametrize(
    ("phrase", "part", "families"),
    [
        ("black crescent below a yellow throat", "throat", ["yellow"]),
        ("bill tipped black", "bill", ["black"]),
        ("blue-gray wings", "wings", ["blue", "gray"]),
        ("gray breast meeting a white belly", "breast", ["gray"]),
        ("black-and-white crown", "crown", ["black", "white"]),
    ],
)
def test_a_colour_belongs_to_the_part_beside_it(phrase, part, families):
    found = [claim for claim in claims("cub200", "Blue Jay", phrase) if claim[0] == (part,)]
    assert {family for _, values in found for family in values} == set(families)


def test_a_colour_without_a_known_part_may_be_any_of_the_class_but_not_that_of_scenery():
    (claim,) = claims("cub200", "Blue Jay", "orange plume")
    assert {"bill", "tail", "other"} < set(claim[0]) and claim[1] == ["orange"]
    assert claims("cub200", "Blue Jay", "orange leaves") == []
    assert claims("stanford_cars", "2012 Audi R8 Coupe", "orange paint") == []  # cars come in every colour


@pytest.mark.parametrize(
    ("name", "key", "right", "wrong"),
    [
        ("fgvc_aircraft", "A340-600", "four fat engines", "two fat engines"),
        ("fgvc_aircraft", "737-800", "two hatches side by side", "single hatch above the wing"),
        ("fgvc_aircraft", "BAE 146-200", "high tailplane", "low-set tailplane"),
        ("fgvc_aircraft", "Saab 2000", "six-bladed props", "four-bladed props"),
        ("cub200", "Cardinal", "red crest", "blue crest"),
        ("cub200", "American Crow", "fan-shaped tail", "wedge-shaped tail"),
        ("cub200", "Least Tern", "yellow beak", "purple beak"),
        ("stanford_cars", "2012 Audi S5 Coupe", "four oval pipes", "two oval pipes"),
        ("stanford_cars", "2012 Audi S5 Coupe", "fixed roof", "fabric hood folded"),
        ("stanford_cars", "2012 Ford Edge SUV", "blue oval", "green oval"),
    ],
)
def test_contradictions(name, key, right, wrong):
    table = load_fact_table(name)
    assert table.contradictions(right, key) == [] and table.contradictions(wrong, key)


def test_what_the_table_does_not_know_is_no_contradiction():
    table = load_fact_table("fgvc_aircraft")
    assert "doors" not in table.facts["DC-8"] and table.contradictions("nine doors", "DC-8") == []


@pytest.mark.parametrize("name", SETS)
class TestPackagedTables:
    def test_a_row_per_class_and_no_contradiction(self, name):
        source, table = load_description_set(name), load_fact_table(name)
        assert list(table.facts) == list(source.descriptions)
        assert [finding for finding in fact_defects(source) if finding.defect == "contradicts_facts"] == []

    def test_every_claim_has_a_column_and_every_colour_a_family(self, name):
        words = json.loads((FACTS / "words.json").read_text("utf-8"))
        own, families = words["sets"][name], {family for row in words["colours"].values() for family in row}
        with (FACTS / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert set(own.get("values", {})) <= set(rows[0])
        coloured = set(own.get("colours", {})) & set(rows[0])
        assert {family for row in rows for part in coloured for family in row[part].split()} <= families
        assert [row["class"] for row in rows].count(EVERY) <= 1

    def test_twenty_pairs_of_which_eighteen_are_told_apart(self, name):
        source, table = load_description_set(name), load_fact_table(name)
        assert len(table.pairs) == len({frozenset(pair) for pair in table.pairs}) == 20
        assert {key for pair in table.pairs for key in pair} <= set(source.descriptions)
        told = [len(table.told_apart(source, *pair)) for pair in table.pairs]
        assert sum(count >= TOLD_APART for count in told) >= 18


def test_a_wrong_phrase_of_a_packaged_set_is_a_defect():
    source = load_description_set("cub200")
    wrong = replace(source, descriptions={"Cardinal": ["pointed blue crest", "black mask"]})
    (found,) = fact_defects(wrong)
    assert (found.key, found.phrase, found.defect, found.severity) == ("Cardinal", "pointed blue crest", "contradicts_facts", "error")
    assert list(fact_defects(replace(wrong, name="mine"))) == []


def test_a_pair_with_the_same_phrases_is_confusable():
    source = load_description_set("cub200")
    same = ["glossy black back", "stout bill", "fan-shaped tail"]
    crows = replace(source, descriptions={"American Crow": same, "Fish Crow": same})
    found = [(finding.key, finding.defect, finding.severity) for finding in fact_defects(crows) if not finding.phrase]
    assert found == [("American Crow", "confusable", "warning")]


class TestPlanted:
    def test_auc_by_hand(self):
        assert planted.auc([0, 0, 1, 1], [1, 1]) == 0.75  # four pairs won, four tied
        assert planted.auc([0], [1]) == 1.0 and planted.auc([1], [1]) == 0.5 and planted.auc([1], [0]) == 0.0

    @pytest.mark.parametrize(("name", "plant"), [("fgvc_aircraft", "count"), ("stanford_cars", "count"), ("cub200", "colour")])
    def test_planted_counts_and_colours_are_found(self, name, plant):
        right, wrong = planted.measured(name, plant, seed=0, draws=1)
        assert len(wrong) > 250 and planted.auc(right, wrong) > 0.8

    def test_an_error_changes_one_word(self):
        source, table = load_description_set("cub200"), load_fact_table("cub200")
        for _, phrase, error in planted.swapped_colours(source, table, planted.random.Random(0)):
            assert phrase != error and sum(a != b for a, b in zip(phrase.split(), error.split(), strict=True)) == 1

    def test_the_published_table_is_of_these_sets(self):
        with Path(planted.__file__).with_name("planted.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert {(row["set"], row["error"]) for row in rows} == {(name, plant) for name in [*SETS, "all"] for plant in planted.PLANTS}
        auc = {(row["set"], row["error"]): row["auc"] for row in rows}
        assert float(auc["all", "count"]) > 0.8 and float(auc["cub200", "colour"]) > 0.8


class TestShow:
    def run(self, capsys, *arguments):
        with pytest.raises(SystemExit) as done:
            main(["describe", "show", *arguments])
        printed = capsys.readouterr()
        return done.value.code, printed.out + printed.err

    def test_one_class_and_what_it_is_confused_with(self, capsys):
        code, printed = self.run(capsys, "fgvc_aircraft", "a318")
        assert code == 0 and printed.splitlines()[0] == "A318" and "confused with: A319" in printed
        assert all(phrase in printed for phrase in load_description_set("fgvc_aircraft").descriptions["A318"])

    def test_two_classes_side_by_side(self, capsys):
        code, printed = self.run(capsys, "cub200", "scarlet-tanager", "--against", "Summer Tanager")
        lines = printed.splitlines()
        assert code == 0 and lines.index("Scarlet Tanager") < lines.index("Summer Tanager")
        assert any(line.startswith("  + black shoulder beside red breast  (black shoulder") for line in lines)

    def test_a_set_without_facts_marks_close_phrases(self, capsys):
        code, printed = self.run(capsys, "oxford_pets", "birman", "--against", "ragdoll")
        assert code == 0 and "  + " not in printed

    def test_global_texts_stand_last(self, capsys):
        lines = self.run(capsys, "eurosat", "river")[1].splitlines()
        assert lines[-1] == f"    whole: {load_description_set('eurosat').global_texts['River'][0]}"

    def test_margins_are_those_of_the_encoder(self, capsys, encoder):
        source = load_description_set("eurosat")
        code, printed = self.run(capsys, "eurosat", "river", "--against", "forest", "--model", "tiny", "--template", "{}")
        text, labels = source.descriptions["River"][0], encoder.encode_texts(["River", "Forest"])
        own, other = (encoder.encode_texts([text]) @ labels.T)[0].tolist()
        assert code == 0 and f"{own - other:+.3f}  {text}" in printed
        others = encoder.encode_texts([name for name in source.classes if name != "River"])
        nearest = float((encoder.encode_texts([text]) @ others.T).max())
        alone = self.run(capsys, "eurosat", "river", "--model", "tiny", "--template", "{}")[1]
        assert f"{own - nearest:+.3f}  {text}" in alone and "to another's" in alone

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["cub200", "Scarlet Tanger"], ["cub200 has no class 'Scarlet Tanger'", "close are Scarlet Tanager"]),
            (["imagenet1k", "missile"], ["imagenet1k has 2 classes 'missile'", "n03773504"]),
            (["zoo", "cat"], ["no description set is called 'zoo'"]),
        ],
    )
    def test_an_unknown_class_names_the_close_ones(self, capsys, arguments, words):
        code, printed = self.run(capsys, *arguments)
        assert code == 2 and all(word in printed for word in words), printed

    def test_likeness_is_of_content_words(self):
        assert likeness("a scaly-edged back", "back with scaly edges") == pytest.approx(3 / 4)
        assert likeness("long tail", "round eyes") == 0.0


class TestPage:
    def test_a_packaged_set(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as done:
            main(["describe", "page", "fgvc_aircraft", "-o", str(tmp_path / "page.html")])
        written, source = (tmp_path / "page.html").read_text(encoding="utf-8"), load_description_set("fgvc_aircraft")
        assert done.value.code == 0 and "100 classes, 1009 local and 100 global texts" in written and "page.html" in capsys.readouterr().out
        assert all(escape(text) in written for key in source.classes for text in source.texts_of(key))
        assert '<p class="soft">confused with <a href="#c24">A319</a></p>' in written and '<li class="told">' in written
        assert "<script" not in written and "http" not in written.replace("http-equiv", "")

    def test_texts_are_escaped_and_findings_stand_beside_them(self):
        bad = "<script>alert('a')</script> & no tail"
        source = DescriptionSet("<b>mini", {"k1": "<i>cat", "k2": "dog"}, {"k1": [bad], "k2": ["nose"]}, {"k1": [GlobalText("<u>whole")]})
        written = page(source)
        assert not any(tag in written for tag in ("<script", "<i>", "<b>", "<u>")) and "&lt;script&gt;" in written
        assert '<span class="note">negation no</span></li>' in written
        assert '<h2>&lt;i&gt;cat <span class="soft">k1</span></h2>' in written and '<p class="whole">&lt;u&gt;whole' in written
