"""task=choose: what it tries, that no test label decides, its budget, a kill, and a chosen.yaml that gives the same predictions."""

import copy
import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import CONF, composed, random_text, session_of, unit
from hydra.utils import instantiate
from refusals import refused
from test_end_to_end import records, run

from multicrop import aggregators
from multicrop.config import check_overrides, register_experiments
from multicrop.data.embedded.emoji import emoji
from multicrop.runs import choose, choose_scores
from multicrop.runs.choose_budget import Budget
from multicrop.runs.choose_settings import GLOBAL, Crops, Setting, settings_to_try, with_setting
from multicrop.runs.classifier import Classifier
from multicrop.runs.experiment import evaluate
from multicrop.runs.settings import settings_of
from multicrop.runs.sweep_cache import SweepCache

SMALL = ["dataset.n_classes=6", "dataset.family_size=3", "dataset.test_images=4", "dataset.train_images=3", "dataset.validation_images=3"]
FEW = ["task.search.n_crops=[2,4]", "task.search.sides=[[0.35,0.63]]", "task.resamples=50", "task.repeats=3", "task.adapters=[]"]


def settings_in(tmp_path, *overrides):
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/run"]
    return settings_of(composed("task=choose", "pictures=0", "examples=0", "trainer.progress=false", *paths, *SMALL, *FEW, *overrides))


def read(folder):
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    return table["image_id"], table["final_prediction"], json.loads((folder / "metrics.json").read_text())


def test_the_search_of_the_configuration_holds_the_global_view_first_and_the_cheap_before_the_dear():
    task = settings_of(composed("task=choose")).task
    found = settings_to_try(task["search"], described=True)
    assert len(found) == len(set(found)) == 243 and found[0] == Setting(Crops(), GLOBAL, (), 1.0)
    views = [setting.crops.n_views for setting in found]
    assert views == sorted(views) and set(views) == {1, 5, 17}
    labels = settings_to_try(task["search"], described=False)
    assert {setting.texts for setting in labels} == {"label"} and labels[0] == found[0] and len(labels) == 1 + 2 * 3 * 4
    own = settings_to_try(settings_of(composed("task=choose", "dataset=emoji")).task["search"], described=True)
    assert {setting.crops.sides for setting in own} == {None, (0.5, 0.9), (0.2, 0.5)}  # one range is the data set's own


def test_predictions_of_every_setting_are_those_of_its_normal_run(tmp_path):
    settings = settings_in(tmp_path)
    cache = SweepCache()
    session = choose.Session(settings, cache)
    (images,) = choose.images_to_choose_on(session, **settings.task_knobs)
    scored = choose.search(session, images, Budget())
    assert len(images) == 18 and scored.predictions.shape == (len(scored.settings), 18) and not scored.left_out
    for row in (0, 1, 10, 40, len(scored.settings) - 1):
        plain = with_setting(settings, scored.settings[row])
        task = {"name": "zero_shot", "fusion_weight": plain.task["fusion_weight"], "build": composed().task.build}
        config = {**plain.config, "split": "validation", "task": {**task, "build": dict(task["build"])}}
        evaluate(choose.replace(plain, config=config), cache)
        _, predictions, _ = read(tmp_path / "run")
        assert predictions == scored.predictions[row].tolist()


def test_no_label_of_the_test_images_decides(tmp_path):
    """With other labels of the test images the same setting is chosen; with other labels of the validation images its accuracy changes."""
    found = {}
    for turned in ("none", "test", "validation"):
        settings, cache = settings_in(tmp_path), SweepCache()
        session = choose.Session(settings, cache)
        if turned != "none":
            images = getattr(session.dataset, turned)
            images = choose.replace(images, labels=[(label + 1) % 6 for label in images.labels])
            changed = choose.replace(session.dataset, **{turned: images})
            cache = SweepCache()
            session = choose.Session(settings, cache)
            assert cache.get("dataset", settings.part("dataset").values, lambda changed=changed: changed) is session.dataset
        (images,) = choose.images_to_choose_on(session, **settings.task_knobs)
        found[turned] = choose.found_in(session, images, choose.search(session, images, Budget())).facts()
    assert found["none"] == found["test"] != found["validation"]


def test_the_run_writes_its_choice_and_the_experiment_gives_the_same_predictions(tmp_path):
    done = run(tmp_path, "task=choose", "logger=none", *SMALL, *FEW, "seed=3", "dataset.dataset_seed=7", "pictures=0")
    (first,) = records(tmp_path)
    ids, predictions, metrics = read(first)
    choice, chosen = metrics["choice"], yaml.safe_load((first / "chosen.yaml").read_text())
    assert choice["images"] == 18 and choice["chosen_on"] == "validation images" and choice["answer"][0] in done.stdout
    assert choice["settings"] == len((first / "choice.csv").read_text().splitlines()) - 1 and choice["temperature"] > 0
    assert sum(choice["families"].values()) == pytest.approx(1) and choice["optimism"]["low"] <= choice["optimism"]["high"]
    assert {"override /dataset": "scenes"} in chosen["defaults"] and chosen["dataset"]["dataset_seed"] == 7 and chosen["seed"] == 3
    assert "vendor" not in chosen["dataset"]  # only what differs from the option
    assert Classifier.from_config(first / "chosen.yaml").predictor.temperature == chosen["temperature"] == choice["temperature"]
    assert {"chosen.yaml", "choice.csv"} <= set(json.loads((first / "manifest.json").read_text())["files"])
    run(tmp_path / "again", f"experiment={first}/chosen.yaml", "logger=none", "pictures=0")
    (second,) = records(tmp_path / "again")
    assert read(second)[:2] == (ids, predictions) and read(second)[2]["rows"]["final"] == metrics["rows"]["final"]


def test_a_killed_search_goes_on_where_it_was(tmp_path, monkeypatch):
    """The second process scores only what the first one has not saved, and ends with the same choice."""
    scored, original = [], choose_scores.Search._scores

    def counted(self, *args):
        if len(scored) == stop_after:
            raise KeyboardInterrupt
        scored.append(args[-1])
        return original(self, *args)

    monkeypatch.setattr(choose_scores.Search, "_scores", counted)
    stop_after = 7
    with pytest.raises(KeyboardInterrupt):
        choose.run(settings_in(tmp_path))
    stop_after = None
    choose.run(settings_in(tmp_path))
    groups = len(scored)
    resumed = read(tmp_path / "run")
    choose.run(settings_in(tmp_path))
    assert len(scored) == groups  # everything is saved
    (folder,) = (tmp_path / "banks" / "choices").iterdir()
    damaged = sorted(folder.glob("*.sealed"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    choose.run(settings_in(tmp_path))
    assert len(scored) == groups + 1 and damaged.with_name(f"{damaged.name}.damaged").is_file()
    choose.run(settings_in(tmp_path / "other"))
    assert read(tmp_path / "other" / "run")[1] == resumed[1] and len(scored) == 2 * groups + 1


def test_a_budget_leaves_out_what_it_does_not_pay_for(tmp_path):
    for text, views, seconds in (("90s", None, 90), ("10m", None, 600), ("1.5h", None, 5400), ("20000views", 20_000, None)):
        budget = Budget.of(text)
        assert (budget.views, budget.seconds) == (views, seconds)
    with refused("task.budget is a time (90s, 10m, 1h) or a number of views", "'soon'", "null: no limit"):
        Budget.of("soon")
    assert Budget.of(None).allows(10**9, 1.0) and not Budget(seconds=60.0).allows(1000, 10.0) and Budget(seconds=60.0).allows(100, 10.0)
    settings = settings_in(tmp_path, "task.search.sides=[[0.35,0.63],[0.5,0.9]]")
    session = choose.Session(settings, SweepCache())
    (images,) = choose.images_to_choose_on(session, **settings.task_knobs)
    scored = choose.search(session, images, Budget(views=18 + (18 + 24) * 3 + 10))  # one range of two crops, with those of the test
    assert {s.crops for s in scored.settings} == {Crops(), Crops((0.35, 0.63), 2)} and {s.crops.n_crops for s in scored.left_out} == {2, 4}
    assert "The budget left out" in choose.found_in(session, images, scored).answer()[-1]


def test_images_to_choose_on_are_validation_else_training_images_corrupted_as_the_test():
    session = session_of("task=choose", *SMALL)
    knobs = {"labels": "validation", "max_images": 400, "like_test": True}
    assert choose.images_to_choose_on(session, **knobs)[0].ids == session.dataset.validation.ids
    assert choose.images_to_choose_on(session, **{**knobs, "labels": "none"})[0] is session.dataset.test
    noisy = session_of("task=choose", "corruption=common", *SMALL)
    clean, (spoilt,) = noisy.dataset.validation, choose.images_to_choose_on(noisy, **knobs)
    assert spoilt.ids == clean.ids and np.abs(np.asarray(spoilt.open(0), float) - np.asarray(clean.open(0), float)).mean() > 5
    assert choose.images_to_choose_on(noisy, **{**knobs, "like_test": False})[0].fingerprint == clean.fingerprint
    with refused("task.labels is validation or none, got 'some'"):
        choose.images_to_choose_on(session, **{**knobs, "labels": "some"})
    few = choose.evenly(emoji(vendors=["noto-v1"], group="food", unseen=False).train, 100, 1)
    counts = np.bincount(few.labels)
    assert len(few) == 100 and counts.max() - counts.min() <= 1


def test_without_descriptions_label_prompts_are_searched(tmp_path):
    settings = settings_in(tmp_path)
    session = choose.Session(settings, SweepCache())
    assert choose.without_descriptions(settings, session) is settings
    session.__dict__["dataset"] = choose.replace(session.dataset, descriptions={})
    bare = choose.without_descriptions(settings, session)
    assert bare.part("prompt").make()(["cat"], {}) == [["cat"]] and bare.choices["prompt"] == "template"


def test_without_labels_a_criterion_chooses_and_no_accuracy_is_told(tmp_path):
    settings = settings_in(tmp_path, "task.labels=none", "task.criterion=consistency")
    choose.run(settings)
    metrics = read(tmp_path / "run")[2]
    choice = metrics["choice"]
    assert choice["images"] == 24 and choice["temperature"] is None and "gain" not in choice and "consistency" in choice["chosen_on"]
    lines = list(csv.DictReader((tmp_path / "run" / "choice.csv").read_text().splitlines()))
    assert not any(line["accuracy"] or line["probability"] or line["share_of_resamples"] for line in lines) and all(
        line["consistency"] for line in lines
    )


def test_an_experiment_of_a_path_is_an_option_and_a_path_that_is_none_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# @package _global_\ndefaults:\n- override /aggregator: max\nseed: 5\n")
    (word,) = register_experiments([f"experiment={path}"])
    check_overrides([word, "aggregator.each=both"], CONF)
    made = composed(word)
    assert made.seed == 5 and made.aggregator._target_.endswith(".max") and word.startswith("experiment=")
    assert register_experiments(["experiment=zero_shot/dnd", "seed=2"]) == ["experiment=zero_shot/dnd", "seed=2"]
    with refused("no such file", "chosen.yaml"):
        register_experiments(["experiment=nothing.yaml"])


class TestGate:
    def test_each_image_has_the_weight_of_its_own_entropies(self, generator):
        text, views = random_text(generator), unit(5, 6, 16, generator=generator)
        values = composed("aggregator=gated").aggregator
        local, whole = instantiate(values.local)(views, text, 20.0), aggregators.global_view(views, text, 20.0)
        make = {name: value for name, value in values.items() if name != "facts"}
        logits = instantiate({**copy.deepcopy(make), "threshold": 0.1, "width": 0.2})(views, text, 20.0)
        for i in range(5):
            entropies = [torch.distributions.Categorical(logits=20.0 * view @ text.label.T).entropy() for view in views[i]]
            gap = sum(entropies[1:]) / 5 - entropies[0]
            weight = 1 / (1 + torch.exp(-(0.1 - gap) / 0.2))
            torch.testing.assert_close(logits[i], (1 - weight) * whole[i] + weight * local[i], atol=1e-4, rtol=0)

    def test_an_open_gate_is_the_aggregator_and_a_closed_one_the_global_view(self, generator):
        text, views = random_text(generator), unit(5, 6, 16, generator=generator)
        values = composed("aggregator=gated").aggregator
        make = {name: value for name, value in values.items() if name != "facts"}
        opened, closed = (instantiate({**copy.deepcopy(make), "threshold": t})(views, text, 20.0) for t in (50.0, -50.0))
        torch.testing.assert_close(opened, instantiate(values.local)(views, text, 20.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(closed, aggregators.global_view(views, text, 20.0), atol=1e-4, rtol=0)
        with refused("aggregator.width must be above 0"):
            instantiate({**copy.deepcopy(make), "width": 0.0})(views, text, 20.0)
