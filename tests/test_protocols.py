"""Protocols: halves of the classes, adapters on other classes than they learned, published splits, and the printed tables."""

import json
import random
from dataclasses import replace
from functools import partial

import pytest
import records
import torch
from conftest import composed, options, session_of
from few_shot_problem import Problem
from omegaconf import OmegaConf
from refusals import refused

from multicrop.adapters.clip_adapter import ClipAdapter
from multicrop.adapters.tip_adapter import TipAdapter
from multicrop.cli import main
from multicrop.compare import collect as reading
from multicrop.compare.protocols import PROTOCOLS, harmonic, protocol_tables
from multicrop.config import register_resolvers
from multicrop.data.base import Dataset, LabelledImages, StreamedImages
from multicrop.data.few_shot import few_shot_from_file
from multicrop.data.halves import with_half
from multicrop.data.published_splits import coop_split
from multicrop.runs import few_shot
from multicrop.runs.identity import run_identity
from multicrop.runs.session import Session
from multicrop.runs.settings import Part, values_of
from multicrop.runs.sweep_cache import SweepCache
from multicrop.runs.transfer import ClassRows, class_rows, source_session, transferred

SMALL = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=3", "dataset.validation_images=2", "crop=random_k1"]
FEW = ["task=few_shot", "task.shots=2", "adapter=clip_adapter", "adapter.epochs=2", "trainer.progress=false"]


def images(name, labels):
    ids = [f"{name}/{i}" for i in range(len(labels))]
    return LabelledImages(name, ids, list(labels), lambda _: None, name)


def zoo(*, classes=5, train=None, validation=(), keys=None):
    """A data set without pictures."""
    names = [f"class {c}" for c in range(classes)]
    train = [c for c in range(classes) for _ in range(3)] if train is None else train
    splits = images("zoo/train", train), images("zoo/val", validation), images("zoo/test", [3, 0, 4, 1, 2])
    return Dataset("zoo", names, {name: [f"{name} has a tail"] for name in names}, *splits, keys)


class TestHalves:
    def test_the_first_half_rounded_up_is_base_and_labels_count_from_0_again(self):
        base, new = (with_half(zoo(keys=list("abcde")), half) for half in ("base", "new"))
        assert base.class_names == ["class 0", "class 1", "class 2"] and new.class_names == ["class 3", "class 4"]
        assert (base.name, new.name, base.class_keys, new.class_keys) == ("zoo-base", "zoo-new", list("abc"), list("de"))
        assert base.test.ids == ["zoo/test/1", "zoo/test/3", "zoo/test/4"] and base.test.labels == [0, 1, 2]
        assert new.test.labels == [0, 1] and new.train.labels == [0] * 3 + [1] * 3 and list(new.descriptions) == ["class 3", "class 4"]
        assert base.test.fingerprint != new.test.fingerprint and new.test.parent[1] == [0, 2]

    def test_only_classes_with_training_images_are_halved(self):
        assert with_half(zoo(train=[4, 1, 0]), "new").class_names == ["class 4"]

    def test_refuses_what_cannot_be_halved(self):
        with refused("halves the classes that have training images", "zoo has 0", "dataset.train"):
            with_half(zoo(train=[]), "base")
        stream = StreamedImages("s", ["a", "b"], lambda part, parts: iter(()), "f")
        with refused("are a stream"):
            with_half(Dataset("s", ["a", "b"], {}, images("s/train", [0, 1]), images("s/val", []), stream), "new")
        with refused("classes is all, base or new", "'old'"):
            with_half(zoo(), "old")


class TestCoopSplit:
    def test_draws_as_pythons_generator_seeded_right_before(self):
        labels = [2, 0, 2, 1, 0, 1, 2, 0, 1, 0]
        data = zoo(classes=3, train=labels, validation=[1, 0, 2, 2, 1, 0])
        random.seed(7)
        expected = [i for c in (2, 0, 1) for i in random.sample([i for i, label in enumerate(labels) if label == c], 2)]
        held = [i for c in (1, 0, 2) for i in random.sample([i for i, label in enumerate([1, 0, 2, 2, 1, 0]) if label == c], 2)]
        support, validation = coop_split(data, shots=2, seed=7)
        assert support.ids == [f"zoo/train/{i}" for i in expected] and validation.ids == [f"zoo/val/{i}" for i in held]

    def test_validation_takes_at_most_four_images_per_class(self):
        for validation in ([0, 1] * 9, []):
            support, held = coop_split(zoo(classes=2, train=[0, 1] * 12, validation=validation), shots=6, seed=1)
            assert (support.labels.count(0), held.labels.count(0), held.labels.count(1)) == (6, 4, 4)

    def test_without_a_validation_split_what_is_left_of_the_training_images_validates(self):
        support, validation = coop_split(zoo(classes=2, train=[0, 0, 0, 1, 1, 1]), shots=2, seed=1)
        assert sorted(support.labels) == [0, 0, 1, 1] and sorted(validation.labels) == [0, 1]
        assert sorted(support.ids + validation.ids) == [f"zoo/train/{i}" for i in range(6)]
        with refused("one image per class to validate", "2 classes have none in zoo/train", "class 0"):
            coop_split(zoo(classes=2, train=[0, 1]), shots=3, seed=1)


def jsonl(path, labels, *, first=0):
    rows = [{"_impath": f"zoo/images/zoo/train/{i}", "_label": y, "_classname": f"c{y}"} for i, y in enumerate(labels, first)]
    path.write_text("".join(json.dumps({**row, "_domain": -1}) + "\n" for row in rows))
    return path


class TestJsonLines:
    def test_a_pair_is_read_and_repeated_training_images_count_twice(self, tmp_path, caplog):
        data = zoo(classes=2, train=[0, 1, 0, 1])
        file = jsonl(tmp_path / "shot_2-seed_1_train.jsonl", [0, 1])
        file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
        jsonl(tmp_path / "shot_2-seed_1_val.jsonl", [0, 1], first=2)
        support, validation = few_shot_from_file(data, str(file))
        assert support.ids == ["zoo/train/0", "zoo/train/1", "zoo/train/0"] and validation.ids == ["zoo/train/2", "zoo/train/3"]
        assert "names 1 images again" in caplog.text

    def test_without_a_validation_file_the_images_that_are_left_validate(self, tmp_path):
        data = zoo(classes=2, train=[0, 1, 0, 1])
        _, validation = few_shot_from_file(data, str(jsonl(tmp_path / "shot_1-seed_1_train.jsonl", [0, 1])))
        assert validation.ids == ["zoo/train/2", "zoo/train/3"]
        _, most = few_shot_from_file(zoo(classes=2, train=[0, 1] * 7), str(tmp_path / "shot_1-seed_1_train.jsonl"))
        assert most.ids == [f"zoo/train/{i}" for i in range(2, 10)]  # four per class

    def test_refuses_other_names_lines_and_labels(self, tmp_path):
        data = zoo(classes=2, train=[0, 1, 0, 1])
        with refused("one of two files", "_train.jsonl"):
            few_shot_from_file(data, str(jsonl(tmp_path / "shot_1-seed_1_val.jsonl", [0, 1])))
        file = tmp_path / "shot_1_train.jsonl"
        file.write_text('{"_impath": "a", "_label": "0"}\n')
        with refused("line 1 of", "_classname"):
            few_shot_from_file(data, str(file))
        with refused("label 1, the data set says 0"):
            few_shot_from_file(data, str(jsonl(tmp_path / "x_train.jsonl", [1, 1])))


def test_classes_are_matched_by_key_and_otherwise_by_name():
    whole, part = zoo(keys=list("abcde")), with_half(zoo(keys=list("abcde")), "new")
    assert class_rows(whole, part) == [3, 4] and class_rows(part, whole) == [None, None, None, 0, 1]
    assert class_rows(zoo(), Dataset("o", ["class 2", "x"], {}, *[images("o", [])] * 3)) == [2, None]


class Fixed(Session):
    """A session of a small problem and a data set without pictures."""

    def __init__(self, problem, data):
        self.__dict__ |= {"dataset": data, "scorer": problem.score}

    def inject(self, part):
        return part(score=self.scorer)


class Maker(Part):
    """A part that makes a CLIP-Adapter."""

    def make(self):
        return partial(ClipAdapter, **self.values)


class TestTransfer:
    def test_a_class_free_adapter_is_made_anew_for_the_target_with_what_it_learned(self, generator):
        source, target = Problem(generator), Problem(generator, classes=2)
        knobs = {"ratio": 0.2, "reduction": 2, "learning_rate": 0.05, "epochs": 3, "batch_size": 256, "seed": 0}
        fitted = source.fitted(ClipAdapter, **knobs)
        moved = transferred(fitted, Maker(knobs), Fixed(source, zoo(classes=3)), Fixed(target, zoo(classes=2)))
        assert torch.equal(moved.down, fitted.down) and moved.selection is fitted.selection
        expected = target.score(fitted.moved(target.validation.views, 0.2))
        torch.testing.assert_close(target.adapted(moved), expected.detach())

    def test_rows_of_classes_are_kept_for_known_classes_and_refused_for_new_ones(self, generator):
        source, target = Problem(generator), Problem(generator, classes=2)
        fitted = source.fitted(TipAdapter, alpha=1.5, beta=2.5, view_set="all")
        known = Dataset("part", ["class 2", "class 0"], {}, *[images("part", [])] * 3)
        moved = transferred(fitted, Part({}), Fixed(source, zoo(classes=3)), Fixed(target, known))
        assert isinstance(moved, ClassRows)
        expected = source.adapted(fitted)[:, [2, 0]]
        torch.testing.assert_close(moved(source.validation.views, torch.zeros(20, 2)), expected)
        with refused("TipAdapter has a row per class", "no row for 2 of the 5 classes of zoo", "class 3, class 4", "adapter=rla"):
            transferred(fitted, Part({}), Fixed(source, zoo(classes=3)), Fixed(target, zoo()))


class TestRuns:
    def session(self, tmp_path, cache, *words):
        made = session_of(*FEW, f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/out", *words)
        made.cache = cache
        return made

    def test_new_classes_are_scored_by_what_base_classes_taught(self, tmp_path, monkeypatch):
        cache, fits = SweepCache(), []
        fit = few_shot._fit
        monkeypatch.setattr(few_shot, "_fit", lambda session, *rest: fits.append(session.dataset.name) or fit(session, *rest))
        tasks, keys = {}, {}
        for classes in ("base", "new"):
            session = self.session(tmp_path, cache, f"classes={classes}", "task.source=base", *SMALL)
            tasks[classes] = few_shot.build(session, **session.settings.task_knobs)
            keys[classes] = run_identity(session).parts
            assert session.dataset.name == f"scenes-noto-v1-{classes}" and len(session.scorer.text.prompts) == 2
        assert fits == ["scenes-noto-v1-base"] == [tasks["new"].support["of"]]
        assert torch.equal(tasks["new"].adapter.down, tasks["base"].adapter.down) and len(tasks["new"].scorer.text.prompts) == 2
        assert keys["base"]["data"] != keys["new"]["data"] and keys["base"]["adapter"] == keys["new"]["adapter"]
        whole = self.session(tmp_path, cache, "classes=all", *SMALL)
        drawn, _ = few_shot.support_and_validation(whole, shots=2, few_shot_file=None)
        assert tasks["base"].splits["train"] == [image_id for image_id, y in zip(drawn.ids, drawn.labels, strict=True) if y < 2]

    def test_another_data_set_is_the_source(self, tmp_path):
        session = self.session(tmp_path, SweepCache(), "dataset=emoji", "task.source=scenes", "task.source_knobs={n_classes:3}")
        source = source_session(session, session.settings.task["source"])
        assert source.dataset.name == "scenes-noto-v1" and len(source.dataset.class_names) == 3 and source.settings.task["source"] is None
        assert source.settings.config["crop"]["min_side"] == 0.35 != session.settings.config["crop"]["min_side"]
        assert source_session(source, None) is source

    def test_an_unknown_source_is_refused(self):
        with refused("task.source is base, new or a data set, got scene", "did you mean scenes"):
            values_of(composed("task=few_shot", "task.source=scene"))


def test_a_value_by_data_set_is_that_of_the_source_or_of_the_scored_one():
    register_resolvers()
    config = {"dataset": {"name": "dtd"}, "task": {"source": None}, "x": "${for_dataset:{dtd:1,imagenet:2},3}"}
    assert OmegaConf.create(config).x == 1
    for source, expected in (("base", 1), ("imagenet", 2), ("food101", 3)):
        assert OmegaConf.create({**config, "task": {"source": source}}).x == expected
    assert OmegaConf.create({**config, "dataset": {}}).x == 3
    assert composed("task=few_shot", "adapter=ape_t", "dataset=eurosat").adapter.epochs == 200


def test_every_protocol_has_a_table():
    assert set(options("protocol")) == set(PROTOCOLS)


def few(folder, accuracy, *, dataset="zoo", classes="all", shots=16, seed=1, knobs=None):
    """A few-shot run of a protocol, which learned from `zoo`."""
    name = f"{dataset}-{classes}-{shots}-{seed}"
    settings = {"shots": shots, **(knobs or {})}
    run = reading.read_run(
        records.write(folder / name, accuracy=accuracy, task="few_shot", seed=seed, knobs=settings, fingerprint=dataset + classes)
    )
    data = {**run.data, "dataset": dataset if classes == "all" else f"{dataset}-{classes}"}
    metrics = {**run.metrics, "selection": {"how": "validation"}, "support": {"of": "zoo"}}
    return replace(run, config={**run.config, "classes": classes}, data=data, metrics=metrics)


def accuracies(table, column):
    return {row["method"]: row[column] for row in table.rows}


class TestTables:
    def test_base_to_new_is_the_harmonic_mean_of_means_over_seeds(self, tmp_path):
        rates = {("zoo", "base"): (0.9, 0.8), ("zoo", "new"): (0.5, 0.4), ("park", "base"): (0.7, 0.6), ("park", "new"): (0.6, 0.7)}
        runs, means = [], {}
        for (data, half), each in rates.items():
            made = [few(tmp_path, rate, dataset=data, classes=half, seed=seed) for seed, rate in enumerate(each)]
            means[data, half] = sum(run.sorted_predictions.accuracy() for run in made) / 2
            runs += made
        average, *each = protocol_tables(runs, "base_to_new")
        assert [table.title for table in each] == ["base-to-new, zoo, top-1 %", "base-to-new, park, top-1 %"]
        b, n = ((means["zoo", half] + means["park", half]) / 2 for half in ("base", "new"))
        row = average.rows[-1]
        assert row["method"] == "dnd + tip, random_k4" and row["runs"] == 2 and row["chosen_on"] == "few-shot validation"
        assert (row["base"], row["new"], row["harmonic"]) == tuple(map(pytest.approx, (b, n, 2 * b * n / (b + n))))
        assert average.cells()[-1][1:4] == [f"{100 * x:.2f}" for x in (b, n, 2 * b * n / (b + n))]
        assert "global view" in accuracies(average, "base")

    def test_curves_have_a_column_per_number_of_shots_in_order(self, tmp_path):
        runs = [few(tmp_path, 0.5 + shots / 100, shots=shots) for shots in (16, 2, 4)]
        runs[2] = replace(runs[2], metrics={**runs[2].metrics, "selection": {"how": "fixed"}})
        (table,) = protocol_tables(runs, "all_shots")
        assert list(table.columns) == ["method", "2 shots", "4 shots", "16 shots", "seeds", "chosen on"]
        assert table.rows[-1]["chosen_on"] == "few-shot validation, nothing"
        assert {row["chosen_on"] for row in table.rows[:-1]} == {""}  # rows that read no hyper-parameters

    def test_methods_are_told_apart_by_what_varies_among_them_and_not_by_data_set_or_half(self, tmp_path):
        runs = [few(tmp_path / str(x), 0.7, classes=half, knobs={"x": x}) for x in (1, 2) for half in ("base", "new")]
        (table,) = protocol_tables(runs, "base_to_new")
        assert [row["method"] for row in table.rows[-2:]] == ["dnd + tip, random_k4, x=1", "dnd + tip, random_k4, x=2"]

    def test_transfer_sets_the_source_apart(self, tmp_path):
        runs = [few(tmp_path, 0.9), few(tmp_path, 0.5, dataset="park"), few(tmp_path, 0.7, dataset="sea")]
        (table,) = protocol_tables(runs, "cross_dataset")
        assert list(table.columns)[1:5] == ["zoo (source)", "park", "sea", "average of targets"]
        row = table.rows[-1]
        assert row["average"] == pytest.approx((row["park"] + row["sea"]) / 2) and row["zoo"] > 0.8

    def test_vendors_are_all_targets(self, tmp_path):
        (table,) = protocol_tables([few(tmp_path, 0.5, dataset="park"), few(tmp_path, 0.7, dataset="sea")], "vendors")
        assert list(table.columns)[1:4] == ["park", "sea", "average"] and table.title == "vendors, top-1 %"
        row = table.rows[-1]
        assert row["average"] == pytest.approx((row["park"] + row["sea"]) / 2)

    def test_a_missing_half_leaves_its_cells_empty(self, tmp_path):
        (table,) = protocol_tables([few(tmp_path, 0.9, classes="base")], "base_to_new")
        assert table.rows[-1]["new"] is table.rows[-1]["harmonic"] is None and table.cells()[-1][2:4] == ["", ""]
        assert harmonic(0.0, 0.0) == 0.0

    def test_refuses_other_runs_and_names(self, tmp_path, capsys):
        run = few(tmp_path, 0.9)
        with refused("--protocol is one of base_to_new", "'new'"):
            protocol_tables([run], "new")
        with pytest.raises(SystemExit):
            main(["compare", str(run.folder), "--protocol", "base_to_new"])
        assert "none of the runs is one of the protocol base_to_new" in capsys.readouterr().err
