"""Training data of models: stated by every option, compared with the origin of the scored images, and said in record and tables."""

from dataclasses import replace

import pytest
import records
from conftest import composed, session_of

from multicrop.compare.export import run_lines
from multicrop.compare.identities import shown_record
from multicrop.compare.leaderboard import blocks
from multicrop.compare.run import read_run
from multicrop.record import training_facts, training_words
from multicrop.runs.catalogue import options_of
from multicrop.runs.results import data_of
from multicrop.runs.settings import values_of

VENDORS = ["noto", "twemoji", "fluent-flat", "emojione", "fxemoji"]
ANY = {"imported", "local", "open_clip"}  # options that stand for any model


def test_every_model_states_its_training_data():
    stated = {option.name: option.values["facts"]["training_data"] for option in options_of("model")}
    assert {name for name, names in stated.items() if names is None} == ANY and stated["clip_vit_b16"] == "not published"


@pytest.mark.parametrize(
    ("overrides", "seen"),
    [
        (["dataset=scenes"], []),
        (["dataset=emoji"], []),
        (["dataset=scenes", "split=validation"], VENDORS),
        (["dataset=scenes", "split=validation", "dataset.leave_out=twemoji"], ["twemoji"]),
        (["dataset=emoji", "split=validation", "dataset.leave_out=noto"], ["noto"]),
        (["dataset=scenes", "model.facts.training_data=[noto-v1]"], ["noto-v1"]),
        (["dataset=food101", "model=local", "model.path=x", "model.facts.training_data=[food101,dtd]"], ["food101"]),
        (["dataset=cub200", "model=eva02_b16"], ["imagenet21k"]),
        (["dataset=imagenet_c", "model=local", "model.path=x", "model.facts.training_data=[imagenet]"], ["imagenet"]),
    ],
)
def test_what_the_model_has_seen_of_the_scored_images(overrides, seen):
    config = values_of(composed(*overrides))
    found = training_facts(config, split=config["split"], names=[overrides[0].removeprefix("dataset=")])
    assert found["seen"] == seen


def test_the_record_has_both():
    small = ["dataset.n_classes=4", "dataset.test_images=2", "dataset.train_images=2", "dataset.validation_images=1"]
    session = session_of(*small, "split=validation")
    data = data_of(session, session.scored_images)
    assert data["training_data"] == data["seen"] == VENDORS


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, ""),
        ({"training_data": None, "seen": []}, ""),
        ({"training_data": ["noto"], "seen": []}, ""),
        ({"training_data": ["noto", "b"], "seen": ["noto"]}, "m was trained on noto, which"),
        ({"training_data": "not published", "seen": []}, "training data of m: not published"),
        ({"training_data": ["a", "web:laion-2b"], "seen": []}, "training data of m: the web (laion-2b)"),
    ],
)
def test_the_sentence(data, words):
    said = training_words(data, "m")
    assert said.startswith(words) and bool(said) == bool(words)


def test_tables_records_and_exports_say_it(tmp_path):
    run = read_run(records.write(tmp_path / "run"))
    marked = replace(run, data=run.data | {"training_data": ["noto"], "seen": ["noto"]})
    assert not run.training_note and "tiny was trained on noto" in marked.training_note
    (block,) = blocks([marked])
    assert marked.training_note in block.notes and block.notes.count(marked.training_note) == 1
    assert any("trained on noto" in line for line in shown_record(marked))
    assert {line["seen_in_training"] for line in run_lines(marked, "x")} == {"noto"}


def test_it_is_no_knob_of_a_method(tmp_path):
    run = read_run(records.write(tmp_path / "run"))
    facts = {"model": {"facts": {"training_data": ["a"]}}, "dataset": {"facts": {"origin": {"test": ["b"]}}}}
    assert replace(run, config=run.config | facts).method == run.method
