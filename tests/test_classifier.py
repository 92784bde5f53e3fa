"""Classifier and `multicrop predict`: scikit-learn's habits, the logits of the run, saved adapters, resumed outputs."""

import csv
import io
import json
import pickle
import re
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, composed, options, session_of
from PIL import Image
from refusals import refused
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from multicrop import Classifier
from multicrop.cli import main
from multicrop.data.embedded.emoji import emoji
from multicrop.data.images import ImageError
from multicrop.data.pictures import as_images, found_images
from multicrop.features import RayEngine
from multicrop.files import DamagedFileError
from multicrop.runs import predict as prediction
from multicrop.runs import predicted_parts, predictor, saved_classifier
from multicrop.runs.few_shot import build
from multicrop.runs.predict_on_engine import PartPredictor
from multicrop.runs.predicted_parts import PredictedParts

CLASSES = {"lion": ["a mane", "golden yellow face"], "penguin": ["a white belly", "black wings"], "pig": ["pink skin", "a round snout"]}
SMALL = {"model": "tiny", "crop": "random_k4", "aggregator": "dnd"}
FEATURES = [name for name in options("adapter") if name not in ("clip_lora", "prolip", "twostage")]
CONFIG = """# @package _global_
defaults:
  - override /dataset: folder
  - override /crop: random_k4
  - override /prompt: template
  - override /aggregator: mean_feature
dataset:
  root: {root}
aggregator:
  text_set: label
temperature: 2.0
"""


@pytest.fixture(scope="module")
def drawings() -> list[Image.Image]:
    """Three drawings per class, of the training vendors, in the order of CLASSES."""
    found = emoji(vendors=["noto-v1", "fluent-3d", "streamline"], group="animals", unseen=False)
    positions = {
        name: [i for i, label in enumerate(found.test.labels) if found.class_names[label] in (name, f"{name} face")] for name in CLASSES
    }
    return [found.test.open(index) for name in CLASSES for index in positions[name][:3]]


@pytest.fixture(scope="module")
def labels() -> list[str]:
    return [name for name in CLASSES for _ in range(3)]


@pytest.fixture(scope="module")
def zero_shot() -> Classifier:
    return Classifier(CLASSES, **SMALL)


class TestPredictions:
    def test_classes_come_in_the_order_given(self, zero_shot):
        assert list(zero_shot.classes_) == list(CLASSES)

    def test_probabilities_are_the_softmax_of_the_logits_of_the_parts_by_hand(self, zero_shot, drawings):
        session = session_of("model=tiny", "crop=random_k4", "aggregator=dnd", "dataset=folder")
        text = session.encoder.encode_prompts([[name, *(f"{name}, {text}" for text in texts)] for name, texts in CLASSES.items()])
        assert [row[1].split(", ")[-1] for row in zero_shot.predictor.scorer.text.prompts] != text.prompts  # joined by their grammar
        images = as_images(drawings[:2])
        views = torch.cat([group.views for group in zero_shot.predictor.groups(images)])
        expected = zero_shot.predictor.scorer(views).softmax(1)
        assert zero_shot.predict_proba(drawings[:2]) == pytest.approx(expected.numpy(), abs=1e-6)

    def test_the_temperature_divides_the_logits(self, zero_shot, drawings):
        warm = Classifier(CLASSES, temperature=4.0, **SMALL)
        assert warm.decision_function(drawings[:2]) * 4 == pytest.approx(zero_shot.decision_function(drawings[:2]), rel=1e-6)

    def test_a_temperature_of_0_is_refused(self, drawings):
        with refused("temperature", "above 0", "got 0.0"):
            Classifier(CLASSES, temperature=0, **SMALL).predict(drawings[:1])

    def test_a_prediction_does_not_depend_on_the_other_images_nor_on_their_order(self, zero_shot, drawings):
        together = zero_shot.decision_function(drawings)
        assert zero_shot.decision_function(drawings[::-1])[::-1] == pytest.approx(together, abs=1e-4)
        assert zero_shot.decision_function(drawings[3:4]) == pytest.approx(together[3:4], abs=1e-4)

    def test_arrays_and_floats_and_files_are_the_images_that_they_hold(self, zero_shot, drawings, tmp_path):
        array = np.asarray(drawings[0])
        expected = zero_shot.decision_function(drawings[:1])
        assert zero_shot.decision_function([array]) == pytest.approx(expected)
        assert zero_shot.decision_function(array[None]) == pytest.approx(expected)
        assert zero_shot.decision_function([array / 255]) == pytest.approx(expected)
        drawings[0].save(tmp_path / "a.png")
        by_name = zero_shot.predict_proba([tmp_path / "a.png", str(tmp_path / "a.png")])
        assert by_name[0] == pytest.approx(by_name[1])

    def test_what_is_no_image_is_refused(self, zero_shot, drawings, tmp_path):
        (tmp_path / "bad.png").write_text("no image")
        for wrong, error, message in (
            (drawings[0], ValueError, r"pass \[image\]"),
            (np.asarray(drawings[0]), ValueError, r"pass \[image\]"),
            ([np.zeros((4, 4, 7), np.uint8)], ImageError, r"\(4, 4, 7\)"),
            ([np.full((9, 9, 3), 200.0)], ImageError, "from 0 to 1"),
            ([np.zeros((9, 9, 3), np.int64)], ImageError, "int64"),
            ([tmp_path / "bad.png"], ImageError, "bad.png"),
        ):
            with pytest.raises(error, match=message):
                zero_shot.predict(wrong)

    def test_an_explanation_names_the_prediction_and_its_probability(self, zero_shot, drawings):
        item = zero_shot.explain(drawings[0])
        assert item.predicted.name == zero_shot.predict(drawings[:1])[0]
        assert item.probability == pytest.approx(zero_shot.predict_proba(drawings[:1]).max(), abs=1e-4)
        assert Classifier(CLASSES, temperature=9.0, **SMALL).explain(drawings[0]).probability < item.probability


class TestFit:
    def test_the_images_of_fit_are_learned(self, drawings, labels, zero_shot):
        fitted = Classifier(CLASSES, validation_share=0, **SMALL).fit(drawings, labels)
        before, after = zero_shot.decision_function(drawings), fitted.decision_function(drawings)
        own = np.arange(len(labels)), [list(CLASSES).index(name) for name in labels]
        assert np.all(after[own] - after.mean(1) > before[own] - before.mean(1))  # the cache votes for the class of each image

    def test_classes_are_learned_from_the_labels_where_none_are_given(self, drawings, labels):
        words = ["prompt=template", "aggregator.text_set=label"]
        made = Classifier(model="tiny", crop="random_k4", aggregator="mean_feature", overrides=words)
        with pytest.raises(NotFittedError, match="classes="):
            made.predict(drawings)
        assert list(made.fit(drawings, labels).classes_) == sorted(CLASSES)

    def test_hyper_parameters_are_chosen_on_images_that_are_held_out(self, drawings, labels):
        fitted = Classifier(CLASSES, validation_share=1 / 3, **SMALL).fit(drawings, labels)
        assert fitted.predictor.adapter.selection["images"] == 3 and fitted.predictor.adapter.selection["how"] == "validation"
        assert len(fitted.predictor.adapter.labels) == 6

    @pytest.mark.parametrize(
        ("count", "names", "message"),
        [(2, ["lion"], "one label per image"), (0, [], "one label per image"), (1, ["wolf"], "wolf, which is none of the classes lion")],
    )
    def test_labels_that_do_not_fit_are_refused(self, drawings, count, names, message):
        with pytest.raises(ValueError, match=message):
            Classifier(CLASSES, **SMALL).fit(drawings[:count], names)

    @pytest.mark.parametrize("adapter", ["clip_lora", "prolip"])
    def test_an_adapter_of_the_encoder_is_refused(self, adapter, drawings, labels):
        with pytest.raises(ValueError, match="changes the encoder"):
            Classifier(CLASSES, adapter=adapter, **SMALL).fit(drawings, labels)

    def test_it_is_cloned_and_cross_validated_by_scikit_learn(self, drawings, labels):
        made = Classifier(CLASSES, validation_share=0, **SMALL)
        assert clone(made).get_params() == made.get_params()
        scores = cross_val_score(made, drawings, labels, cv=3)
        assert scores.shape == (3,) and scores.mean() > 1 / 3

    def test_set_params_forgets_what_was_fitted(self, drawings, labels, zero_shot):
        fitted = Classifier(CLASSES, validation_share=0, **SMALL).fit(drawings, labels)
        learned = fitted.decision_function(drawings[:1])
        assert fitted.set_params(adapter="gda").decision_function(drawings[:1]) == pytest.approx(zero_shot.decision_function(drawings[:1]))
        assert learned != pytest.approx(zero_shot.decision_function(drawings[:1]))


class TestSaved:
    @pytest.mark.parametrize("adapter", FEATURES)
    def test_a_fitted_adapter_is_read_with_the_same_logits(self, adapter, drawings, labels, tmp_path, monkeypatch):
        knobs = [f"{knob}=2" for knob in ("epochs", "iterations", "steps") if knob in composed(f"adapter={adapter}").adapter]
        made = Classifier(CLASSES, adapter=adapter, validation_share=1 / 3, **SMALL)
        _few_steps(monkeypatch, knobs)
        fitted, few = made.fit(drawings, labels), drawings[::4]  # one per class
        expected = fitted.decision_function(few)
        fitted.save(tmp_path)
        assert Classifier.load(tmp_path).decision_function(few) == pytest.approx(expected, abs=1e-6)
        if adapter == FEATURES[0]:  # reads the folder as a run does, with a configuration to compose
            assert Classifier.from_config(tmp_path).decision_function(drawings[:1]) == pytest.approx(expected[:1], abs=1e-4)
        assert not [path for path in tmp_path.iterdir() if path.suffix in (".pkl", ".pt", ".ckpt")]

    def test_a_damaged_file_is_named(self, drawings, labels, tmp_path):
        Classifier(CLASSES, validation_share=0, **SMALL).fit(drawings, labels).save(tmp_path)
        for name in ("adapter.sealed", "classifier.json"):
            path = tmp_path / name
            whole = path.read_bytes()
            path.write_bytes(whole[:-9] + b"0" + whole[-8:])
            with pytest.raises(DamagedFileError, match=name):
                Classifier.load(tmp_path)
            path.write_bytes(whole)
        assert Classifier.load(tmp_path).predict(drawings[:1]) == ["lion"]

    def test_only_how_it_computes_can_be_set(self, zero_shot, tmp_path):
        zero_shot.save(tmp_path)
        assert saved_classifier.read(tmp_path, ["trainer.num_workers=3"])[0]["overrides"] == ["trainer.num_workers=3"]
        with refused("crop.n_crops=2", "saved classifier", "trainer, engine, paths"):
            Classifier.from_config(tmp_path, "crop.n_crops=2", "trainer.num_workers=3")

    def test_a_save_that_stops_leaves_no_facts_of_the_earlier_one(self, zero_shot, tmp_path, monkeypatch):
        zero_shot.save(tmp_path)
        monkeypatch.setattr(saved_classifier, "write_facts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            zero_shot.save(tmp_path)
        with refused("classifier.json"):
            Classifier.load(tmp_path)

    def test_a_folder_without_a_classifier_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"classifier\.json"):
            Classifier.load(tmp_path)


def _few_steps(monkeypatch, knobs):
    """Fit for a moment."""
    whole = predictor.composed

    def short(words, *more):
        return whole([*words, *(f"adapter.{knob}" for knob in knobs if "task=few_shot" in words)], *more)

    monkeypatch.setattr(predictor, "composed", short)


@pytest.fixture
def photos(tmp_path, drawings):
    """A data set of class folders, and the experiment file of a run over it."""
    for number, picture in enumerate(drawings):
        path = tmp_path / "photos" / list(CLASSES)[number // 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    (tmp_path / "chosen.yaml").write_text(CONFIG.format(root=tmp_path / "photos"))
    return tmp_path


def _predict(where, *words, output="out.jsonl", status=0) -> list[dict]:
    """The rows of one call, whose output an earlier call may have written too, and which ends with this exit status."""
    (where / output).unlink(missing_ok=True)
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, words), "--config", str(where / "chosen.yaml"), "-o", str(where / output), "--quiet"])
    assert ended.value.code == status
    return [json.loads(line) for line in (where / output).read_text().splitlines()] if output.endswith("jsonl") else []


def _session(where, *overrides):
    """The parts of the run that chosen.yaml configures."""
    data = ["dataset=folder", f"dataset.root={where / 'photos'}", f"paths.cache={where / 'cache'}"]
    parts = ["crop=random_k4", "prompt=template", "aggregator=mean_feature", "aggregator.text_set=label"]
    return session_of(*data, *parts, *overrides)


class TestCommand:
    def test_logits_are_those_of_the_run(self, photos):
        rows = {row["image"]: row for row in _predict(photos, photos / "photos")}
        session = _session(photos, "bank=off")
        bank = session.bank(session.scored_images)
        views, _ = bank.tensors()
        expected = (session.scorer(views).double() / 2).softmax(1)
        names = session.dataset.class_names
        for image_id, chances in zip(bank.images.ids, expected, strict=True):
            assert rows[image_id]["prediction"] == names[int(chances.argmax())]
            assert rows[image_id]["probability"] == pytest.approx(float(chances.max()), abs=1e-5)
            assert rows[image_id]["runner_up_probability"] == pytest.approx(float(chances.topk(2).values[1]), abs=1e-5)

    def test_the_three_formats_hold_the_same_rows(self, photos):
        rows = _predict(photos, photos / "photos")
        _predict(photos, photos / "photos", output="out.csv")
        _predict(photos, photos / "photos", output="out.parquet")
        assert pq.read_table(photos / "out.parquet").to_pylist() == rows
        read = list(csv.DictReader(io.StringIO((photos / "out.csv").read_text())))
        assert [row["prediction"] for row in read] == [row["prediction"] for row in rows]

    def test_the_box_is_that_of_the_crop(self, photos):
        row = _predict(photos, photos / "photos" / "pig" / "6.png")[0]
        made = Classifier.from_config(photos / "chosen.yaml").predictor
        boxes = next(made.groups(found_images([photos / "photos" / "pig" / "6.png"], below=made.root))).boxes[0]
        assert [row[edge] for edge in ("left", "top", "right", "bottom")] == boxes[row["crop"]].tolist()
        assert row["image"] == "pig/6.png" and row["text"] == row["prediction"]

    def test_lists_tar_files_and_files_are_read(self, photos):
        (photos / "list.txt").write_text("photos/pig/6.png\nphotos/lion/0.png\n")
        with tarfile.open(photos / "shard.tar", "w") as tar:
            tar.add(photos / "photos" / "penguin" / "3.png", "3.png")
            tar.add(photos / "chosen.yaml", "3.yaml")
        rows = _predict(photos, photos / "list.txt", photos / "shard.tar", photos / "photos" / "lion" / "1.png")
        assert [row["image"] for row in rows] == ["pig/6.png", "lion/0.png", "shard.tar/3.png", "lion/1.png"]

    def test_unreadable_images_are_rows_with_their_reason(self, photos, capsys):
        (photos / "photos" / "pig" / "bad.png").write_text("no image")
        rows = _predict(photos, photos / "photos", status=1)
        (bad,) = [row for row in rows if row["error"]]
        assert bad["image"] == "pig/bad.png" and bad["prediction"] is None and "cannot be decoded" in bad["error"]
        assert "1 images could not be read" in capsys.readouterr().err

    def test_a_killed_call_goes_on_and_only_the_rest_is_encoded(self, photos, monkeypatch):
        monkeypatch.setattr(predicted_parts, "PART", 4)
        expected = _predict(photos, photos / "photos")
        encoded, whole = [], prediction.predicted

        def killed(made, images, advance):
            encoded.append(images.ids)
            if len(encoded) == 3:
                raise KeyboardInterrupt
            return whole(made, images, advance)

        monkeypatch.setattr(prediction, "predicted", killed)
        (photos / "out.jsonl").unlink()
        with pytest.raises(KeyboardInterrupt):
            main(["predict", str(photos / "photos"), "--config", str(photos / "chosen.yaml"), "-o", str(photos / "out.jsonl"), "--quiet"])
        assert not (photos / "out.jsonl").exists()
        encoded.append(None)  # the next call is the fifth
        assert _predict(photos, photos / "photos") == expected
        assert [ids and len(ids) for ids in encoded] == [4, 4, 1, None, 1]
        assert not (photos / "out.jsonl.parts").exists()

    def test_actors_predict_the_parts_of_a_call_with_engine_ray(self, photos, monkeypatch):
        expected = _predict(photos, photos / "photos")
        monkeypatch.setattr(predicted_parts, "PART", 4)
        monkeypatch.setattr(prediction, "predicted", lambda *args: pytest.fail("this process predicted"))
        read, whole = [], predicted_parts.read_sealed
        monkeypatch.setattr(predicted_parts, "read_sealed", lambda path, meaning: read.append(path.name) or whole(path, meaning))

        def each(engine, worker, parts, *, views, progress, accelerator):
            assert (views, progress, accelerator, parts.missing()) == (5, False, "cpu", [0, 1, 2])
            actor = pickle.loads(sent := pickle.dumps(worker))  # noqa: S301
            actor.load()
            assert [actor.encode(part) for part in (2, 0, 1)] == [1, 4, 4] and parts.missing() == []
            assert len(pickle.dumps(worker)) == len(sent)

        monkeypatch.setattr(RayEngine, "each", each)
        assert _predict(photos, photos / "photos", "--set", "engine=ray") == expected
        assert len(read) == len(set(read)) == 3
        other = PartPredictor(photos / "chosen.yaml", (), PredictedParts(photos, "another key", as_images([])))
        with refused("another version of multicrop"):
            other.load()

    def test_parts_of_another_image_or_configuration_are_not_used(self, photos, monkeypatch):
        monkeypatch.setattr(predicted_parts, "PART", 4)
        monkeypatch.setattr(prediction.shutil, "rmtree", lambda *args, **kwargs: None)  # the parts stay, as after a kill
        encoded, whole = [], prediction.predicted
        monkeypatch.setattr(prediction, "predicted", lambda *args: encoded.append(args[1].ids[0]) or whole(*args))
        first = _predict(photos, photos / "photos")
        assert _predict(photos, photos / "photos") == first and len(encoded) == 3
        picture = Image.open(photos / "photos" / "lion" / "0.png").convert("RGB")
        picture.transpose(Image.Transpose.ROTATE_90).save(photos / "photos" / "lion" / "0.png")
        turned = _predict(photos, photos / "photos")
        assert encoded[3:] == ["lion/0.png"]
        assert [row["image"] for row, before in zip(turned, first, strict=True) if row != before] == ["lion/0.png"]
        warmer = _predict(photos, photos / "photos", "--set", "temperature=3.0")
        assert len(encoded) == 7 and all(row["probability"] < before["probability"] for row, before in zip(warmer, turned, strict=True))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["nowhere"], "nowhere does not exist"),
            (["."], "holds no image"),
            (["photos", "-o", "out.xls"], r"\*\.parquet, \*\.csv or \*\.jsonl|\*\.parquet, \*\.csv, \*\.jsonl"),
            (["photos", "--threads", "0"], "--threads must be 1 or more"),
            (["photos", "--config", "missing.yaml"], "missing.yaml is neither"),
            (["photos", "--set", "task=tta"], "task=tta does not"),
        ],
    )
    def test_a_mistake_is_one_line(self, photos, words, message, monkeypatch, capsys):
        (photos / "empty").mkdir()
        monkeypatch.chdir(photos / "empty" if words == ["."] else photos)
        with pytest.raises(SystemExit) as ended:
            main(["predict", "--config", str(photos / "chosen.yaml"), "--quiet", *words])
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and error.startswith("error: ") and "\n" not in error
        assert re.search(message, error), error

    def test_paths_come_from_standard_input(self, photos, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / 'photos' / 'pig' / '6.png'}\n"))
        assert [row["image"] for row in _predict(photos, "-")] == ["pig/6.png"]


def test_the_classifier_of_a_few_shot_configuration_is_fitted_as_its_run(photos):
    file = photos / "few.yaml"
    file.write_text(
        CONFIG.format(root=photos / "photos")
        .replace("defaults:", "defaults:\n  - override /task: few_shot")
        .replace("temperature: 2.0", "task:\n  shots: 1")
    )
    where = [f"paths.cache={photos / 'cache'}", "trainer.progress=false", "dataset.test_share=0.3"]
    classifier = Classifier.from_config(file, *where).predictor
    session = _session(photos, "task=few_shot", "task.shots=1", "trainer.progress=false", "dataset.test_share=0.3")
    task = build(session, **session.settings.task_knobs)
    views = session.bank(session.scored_images).tensors()[0]
    assert classifier.logits(views).numpy() == pytest.approx(task.final_logits(views, session.scorer(views)).numpy(), abs=1e-5)


def test_the_example_of_the_guide_runs_as_printed(photos, drawings, labels, monkeypatch):
    monkeypatch.chdir(photos)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "predict.md").read_text(), re.S)
    images = [picture for picture, name in zip(drawings, labels, strict=True) if name != "pig"]
    names = {"images": images, "labels": ["cat" if name == "lion" else "dog" for name in labels if name != "pig"]}
    exec(code, names)  # noqa: S102
    assert names["clip"].predict(images[:1]).shape == (1,)
