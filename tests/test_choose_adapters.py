"""Adapters in task=choose: no adapter judges an image that it has seen, and the chosen one is written, run and loaded."""

import csv
import json
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from conftest import composed
from refusals import refused
from safetensors.torch import load_file, save_file

from multicrop.files import DamagedFileError
from multicrop.runs import choose, chosen_adapter
from multicrop.runs.choose_adapters import CrossFit, fold_numbers
from multicrop.runs.choose_budget import Budget
from multicrop.runs.choose_settings import GLOBAL, Crops, Setting, settings_to_try, with_setting
from multicrop.runs.classifier import Classifier
from multicrop.runs.experiment import evaluate
from multicrop.runs.few_shot import examples_of
from multicrop.runs.predictor import classifier_settings
from multicrop.runs.session import Session
from multicrop.runs.settings import composed as settings_in_file
from multicrop.runs.settings import settings_of
from multicrop.runs.sweep_cache import SweepCache

SMALL = ["dataset.n_classes=6", "dataset.family_size=3", "dataset.test_images=4", "dataset.train_images=4", "dataset.validation_images=4"]
LABEL = {"view_set": ["all"], "text_set": ["label"]}
ADAPTED = {"mean_feature": {**LABEL, "fusion_weight": [1.0]}, "dnd": {"view_set": ["all"], "text_set": ["all"], "fusion_weight": [0.75]}}
SEARCH = {
    "whole": {},
    "crops": {"mean_feature": LABEL},
    "adapted": ADAPTED,
    "fusion_weight": [1.0],
    "n_crops": [2],
    "sides": [[0.35, 0.63]],
}
QUIET = ["pictures=0", "examples=0", "trainer.progress=false", "task.repeats=3", "task.folds=3", "task.shots=2", "task.resamples=50"]


@pytest.fixture(scope="module")
def cache():
    """Data set, model, texts and banks of all tests."""
    return SweepCache()


@pytest.fixture
def session(tmp_path_factory, tmp_path, cache):
    """The parts of a search with two adapters."""
    return session_in(tmp_path_factory, tmp_path, cache, "task.adapters=[tip_adapter,gda]")


OPTIONS = {"dataset": "scenes", "corruption": "none", "model": "tiny", "prompt": "descriptions"}  # as a Hydra job would know them
OPTIONS |= {f"aggregator@task.aggregators.{name}": name for name in ("mean_feature", "dnd")} | {"aggregator@task.baseline": "global"}
OPTIONS |= {f"adapter@task.few_shot.{name}": name for name in ("tip_adapter", "gda")}
OPTIONS |= {"crop@task.crops": "random", "crop@task.whole": "global"}


def session_in(tmp_path_factory, tmp_path, cache, *overrides):
    banks = tmp_path_factory.getbasetemp() / "adapter_banks"
    paths = [f"paths.cache={banks}", f"paths.output={tmp_path}/run"]
    settings = settings_of(composed("task=choose", *paths, *SMALL, *QUIET, *overrides))
    config = {**settings.config, "task": {**settings.task, "search": SEARCH}}
    return Session(replace(settings, config=config, choices=OPTIONS), cache)


def images_of(session):
    return choose.images_to_choose_on(session, **session.settings.task_knobs)[0]


def test_adapters_come_after_all_settings_without_the_cheaper_first():
    search = settings_of(composed("task=choose")).task["search"]
    plain = settings_to_try(search, described=True)
    found = settings_to_try(search, described=True, adapters=["tip_adapter", "gda"])
    assert found[: len(plain)] == plain and len(found) == len(set(found)) == len(plain) + 2 * 3
    added = found[len(plain) :]
    assert [s.adapter for s in added[:2]] == ["tip_adapter", "gda"] and {s.crops for s in added[:2]} == {Crops()}
    own = Crops(tuple(search["sides"][0]), 16)
    assert [(s.adapter, s.aggregator, s.fusion_weight) for s in added[2:]] == [
        (name, *host) for name in ("tip_adapter", "gda") for host in (("mean_feature", 1.0), ("dnd", 0.75))
    ]
    assert {s.crops for s in added[2:]} == {own}
    assert {s.texts for s in settings_to_try(search, described=False, adapters=["gda"])} == {"label"}
    assert str(added[0]) == "tip_adapter on the plain global view" and added[0].zero_shot == plain[0] and added[0].family != plain[0].family


def test_folds_are_balanced_over_classes_and_keep_clusters_together_where_classes_have_several():
    labels = [label for label in range(5) for _ in range(8)]
    numbers = fold_numbers(labels, None, 4, seed=1)
    counts = np.array([[((numbers == fold) & (np.array(labels) == label)).sum() for label in range(5)] for fold in range(4)])
    assert (counts == 2).all() and (fold_numbers(labels, None, 4, seed=2) != numbers).any()
    patients = [f"patient {i // 2}" for i in range(40)]
    grouped = fold_numbers(labels, patients, 4, seed=1)
    assert all(grouped[i] == grouped[i + 1] for i in range(0, 40, 2)) and np.bincount(grouped).tolist() == [10, 10, 10, 10]
    of_class = fold_numbers(labels, [f"class {label}" for label in labels], 4, seed=1)
    assert (of_class == numbers).all()  # a cluster per class: without the cluster there would be nothing to learn the class from


@pytest.mark.parametrize("validation", [True, False])
def test_an_image_takes_no_part_in_the_fit_that_judges_it(session, validation):
    dataset, images = session.dataset, images_of(session)
    if not validation:
        images = dataset.train
        dataset = replace(dataset, validation=dataset.validation.subset([]))
    judge = CrossFit(dataset, images, shots=2, folds=3, seed=1)
    assert sorted(i for fold in judge.folds for i in fold.judged) == list(range(len(images)))
    for fold in judge.folds:
        judged, own = {images.ids[i] for i in fold.judged}, fold.validation.ids if validation else [*fold.support.ids, *fold.validation.ids]
        assert judged and not judged & set(own) and set(fold.support.labels) == set(range(6))
        assert set(fold.support.ids) <= set(judge.support.ids) and set(fold.validation.ids) <= set(judge.validation.ids)
    assert judge.support.fingerprint == dataset.train.fingerprint  # most of it: one bank for the folds and the run
    assert judge.to_encode == (len(dataset.train) if validation else 0)


def test_logits_are_those_of_an_adapter_that_is_fitted_by_hand_without_the_fold(session):
    images, dataset = images_of(session), session.dataset
    setting = Setting(Crops((0.35, 0.63), 2), "mean_feature", (("view_set", "all"), ("text_set", "label")), 1.0, "tip_adapter")
    own = Session(with_setting(session.settings, setting), session.cache)
    judge = CrossFit(dataset, images, shots=2, folds=3, seed=1)
    found = judge.logits(own, judge.known(own))
    views, labels = own.bank(images).tensors()
    for fold in judge.folds:
        adapter = own.inject(own.settings.part("adapter").make())
        with torch.no_grad():
            adapter.fit(*(examples_of(own.scorer, *own.bank(part).tensors()) for part in (fold.support, fold.validation)))
            torch.testing.assert_close(found[fold.judged], adapter(views[fold.judged], own.scorer(views[fold.judged])))
    assert (found != own.scorer(views)).any() and len(labels) == len(found)


def test_the_label_of_an_image_does_not_enter_its_own_logits(session):
    """Training images are judged, with and without wrong labels in one fold: the logits of that fold stay, those of others change."""
    dataset = replace(session.dataset, validation=session.dataset.validation.subset([]))
    own = Session(with_setting(session.settings, Setting(Crops(), GLOBAL, (), 1.0, "tip_adapter")), SweepCache())
    fold = CrossFit(dataset, dataset.train, shots=3, folds=3, seed=1).folds[0].judged
    turned = [(label + 1) % 6 if i in fold else label for i, label in enumerate(dataset.train.labels)]
    found = []
    for labels in (dataset.train.labels, turned):
        train = replace(dataset.train, labels=labels)
        judge = CrossFit(replace(dataset, train=train), dataset.train, shots=3, folds=3, seed=1)
        found.append(judge.logits(own, judge.known(own)))
    assert torch.equal(found[0][fold], found[1][fold]) and not torch.equal(found[0], found[1])


def test_the_search_scores_adapters_once_and_keeps_them(tmp_path_factory, tmp_path, cache, monkeypatch):
    session = session_in(
        tmp_path_factory, tmp_path, cache, "task.adapters=[tip_adapter,gda]", "seed=5"
    )  # no other test has saved its scores
    fitted, whole = [], CrossFit.logits
    monkeypatch.setattr(
        CrossFit, "logits", lambda self, own, known: fitted.append(own.settings.choices["adapter"]) or whole(self, own, known)
    )
    scored = choose.search(session, images_of(session), Budget())
    adapted = [setting for setting in scored.settings if setting.adapter]
    assert fitted == ["tip_adapter", "gda"] * 3 and len(adapted) == 6 and not scored.left_out
    again = choose.search(session, images_of(session), Budget())
    assert len(fitted) == 6 and (again.predictions == scored.predictions).all()
    found = choose.found_in(session, images_of(session), scored)
    lines = list(csv.DictReader(found.table().splitlines()))
    assert [line["adapter"] for line in lines if line["adapter"]] == [setting.adapter for setting in adapted]
    assert replace(found, row=len(scored.settings) - 1).setting == adapted[-1] and "gda on" in str(adapted[-1])


def test_adapters_that_cannot_be_judged_are_left_out_and_unknown_ones_refused(tmp_path_factory, tmp_path, cache, caplog, monkeypatch):
    make = partial(session_in, tmp_path_factory, tmp_path, cache)
    session = make("task.adapters=[gda]", "task.shots=1")  # one view per class has no covariance
    with caplog.at_level(logging.WARNING):
        scored = choose.search(session, images_of(session), Budget())
    whole, crops = "gda on the plain global view", [s for s in scored.settings if s.adapter]
    assert f"{whole} is left out: gda cannot estimate a covariance" in caplog.text and len(crops) == 2 and not scored.left_out
    assert len([s for s in choose.search(make("task.adapters=[]"), images_of(session), Budget()).settings if s.adapter]) == 0
    bare = make("task.adapters=[tip_adapter]")
    bare.__dict__["dataset"] = replace(bare.dataset, train=bare.dataset.train.subset([]))
    assert not [s for s in choose.search(bare, images_of(bare), Budget()).settings if s.adapter]
    assert "adapters take no part: few-shot needs one image per class" in caplog.text
    with refused("task.adapters names nothing", "it lists tip_adapter"):
        choose.search(make("task.adapters=[nothing]"), images_of(session), Budget())
    monkeypatch.setattr(
        Budget, "allows", lambda self, views, rate: views != (6 + 24) * 3
    )  # 6 images of the support, 24 of the test, 3 views
    limited = choose.search(make("task.adapters=[tip_adapter]", "task.shots=1", "seed=2"), images_of(session), Budget())
    assert {s.crops.n_crops for s in limited.settings if s.adapter} == {0} and {s.adapter for s in limited.left_out} == {"tip_adapter"}


class TestChosen:
    @pytest.fixture
    def chosen(self, session):
        """A record whose chosen setting has an adapter."""
        images = images_of(session)
        scored = choose.search(session, images, Budget())
        row = next(row for row, s in enumerate(scored.settings) if s.adapter == "tip_adapter" and s.aggregator == "mean_feature")
        found = replace(choose.found_in(session, images, scored), row=row)
        evaluate(with_setting(session.settings, scored.settings[row]), session.cache, partial(choose.build, found=found))
        return session.settings.output

    def test_the_experiment_predicts_what_the_choice_predicted(self, chosen, tmp_path, session):
        content = yaml.safe_load((chosen / "chosen.yaml").read_text())
        assert {"override /task": "few_shot"} in content["defaults"] and content["task"] == {"fusion_weight": 1.0, "shots": 2}
        assert {"override /adapter": "tip_adapter"} in content["defaults"] and content["seed"] == 1
        files = json.loads((chosen / "manifest.json").read_text())["files"]
        assert {"adapter.safetensors", "chosen.yaml", "choice.csv", "splits.json"} <= set(files)
        again = settings_in_file([f"paths.output={tmp_path}/again", *self.where(session), *QUIET[:3]], chosen / "chosen.yaml")
        evaluate(again, session.cache)
        first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (chosen, tmp_path / "again"))
        assert first["rows"] == second["rows"] and first["selection"]["chosen"] == second["selection"]["chosen"]

    def test_the_classifier_loads_the_adapter_and_fits_none(self, chosen, session):
        expected = Classifier.from_config(chosen / "chosen.yaml", *self.where(session)).predictor
        views = session.bank(session.scored_images).tensors()[0]
        assert expected.adapter.selection["images"] == 0  # not fitted here
        (chosen / "adapter.safetensors").rename(chosen / "kept")
        fitted = Classifier.from_config(chosen / "chosen.yaml", *self.where(session)).predictor
        assert torch.equal(fitted.logits(views), expected.logits(views)) and fitted.adapter.selection["images"] > 0
        assert fitted.adapter.knobs == expected.adapter.knobs

    def test_a_changed_setting_fits_the_adapter_again(self, chosen, session):
        def restored(*changes):
            file = chosen / "chosen.yaml"
            settings = classifier_settings(file, model=None, crop=None, aggregator=None, overrides=[*self.where(session), *changes])
            return chosen_adapter.restored(Session(settings, session.cache), file)

        assert restored() and restored("temperature=3.0", "on_unreadable=raise")
        for change in ("task.shots=1", "seed=2", "task.fusion_weight=0.5", "adapter.alpha=2.0", "crop.n_crops=3", "crop_seed=1"):
            assert restored(change) is None, change

    def test_a_file_of_another_fit_is_refused(self, chosen, session):
        path = chosen / "adapter.safetensors"
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
        with pytest.raises(DamagedFileError, match=r"is not the adapter that chosen\.yaml names: restore it, or remove it"):
            assert Classifier.from_config(chosen / "chosen.yaml", *self.where(session)).predictor

    @staticmethod
    def where(session):
        return [f"paths.cache={session.settings.cache}"]
