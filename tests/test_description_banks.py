"""The counts of experiments/descriptions/texts.py against plain loops, and the packaged banks against what only they must keep."""

import sys
from pathlib import Path

import pytest
import torch

from multicrop.text.descriptions import DescriptionSet, available, load_description_set

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments.descriptions import texts

NAMES = {"a": "sea bass", "b": "red lemon", "c": "trout"}


def bank(*rows) -> DescriptionSet:
    return DescriptionSet("mini", NAMES, dict(zip(NAMES, rows, strict=True)))


def test_close_classes_against_loops():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(40, 3), dim=1)
    owner = torch.arange(40) % 5
    classes, inside = texts.close_classes(features, owner)
    for i in range(40):
        near = [j for j in range(40) if j != i and float(features[i] @ features[j]) > texts.CLOSE]
        assert int(classes[i]) == len({int(owner[j]) for j in near if owner[j] != owner[i]})
        assert bool(inside[i]) == any(owner[j] == owner[i] for j in near)
    assert 0 < texts.share(classes) < 1


@pytest.mark.parametrize(
    ("phrase", "whole", "other"),
    [
        ("silver scales", 0, 0),
        ("lemons at the rim", 0, 1),  # `red` is a colour, so `lemon` is all of the name that counts
        ("trout-like spots", 0, 1),
        ("bass lips", 0, 0),
        ("Sea-bass fins", 1, 0),
        ("trouts", 0, 1),
    ],
)
def test_whole_names_and_names_of_other_classes(phrase, whole, other):
    mini = bank([phrase], ["yellow peel"], ["spotted back"])
    assert (texts.whole_names(mini), texts.rivals(mini)) == (whole, other)


def test_a_part_of_another_name_is_no_other_class():
    assert texts.rivals(bank(["fins"], ["bass in a dish"], ["back"])) == 0
    assert texts.rivals(bank(["fins"], ["bass of the sea"], ["back"])) == 1


def test_a_row_of_global_texts_counts_words_tokens_other_classes_and_errors(monkeypatch):
    rows = {
        "a": ["a long silver swimmer beside two lemons on white ice"],
        "b": ["a round yellow fruit seen close from the side"],
        "c": ["a trout with dark spots held above a small stream"],
    }
    monkeypatch.setattr(texts, "clip_tokens", lambda name, prompts: max(len(prompt.split()) for prompt in prompts))
    assert texts.global_row(DescriptionSet("mini", NAMES, {}, rows)) == "| mini | 3 | 9 / 10 / 10 | 12 | 1 | 1 |"


def test_history_speaks_of_packaged_sets_and_no_more_classes_than_they_have():
    assert set(texts.BEFORE) <= set(available())
    assert all(changed <= len(load_description_set(name).classes) for name, (changed, *_) in texts.BEFORE.items())


@pytest.mark.parametrize("name", ["oxford_pets", "fgvc_aircraft", "flowers102", "stanford_cars", "cub200"])
def test_fine_grained_banks_share_no_phrase_and_name_no_class_whole(name):
    packaged = load_description_set(name)
    phrases = [phrase.casefold() for row in packaged.descriptions.values() for phrase in row]
    assert len(phrases) == len(set(phrases))
    assert texts.whole_names(packaged) == 0
