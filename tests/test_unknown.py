"""Images of unknown classes (ood): which they are, that they are scored after the stream, and what is measured."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import session_of
from hydra.utils import instantiate
from refusals import refused
from sklearn.metrics import roc_auc_score

from multicrop.compare.trust import auroc
from multicrop.record import UNKNOWN, RecordError, read_record
from multicrop.runs.experiment import evaluate
from multicrop.runs.identity import run_identity
from multicrop.runs.scoring import score, stream
from multicrop.runs.unknown import score_unknown

SMALL = [f"dataset.{knob}" for knob in ("n_classes=4", "family_size=2", "test_images=2", "train_images=2", "validation_images=1")]


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    """A cache of banks that the tests share."""
    return tmp_path_factory.mktemp("banks")


def session(banks, *overrides):
    return session_of("trainer.progress=false", f"paths.cache={banks}", "crop=random_k4", *SMALL, *overrides)


def scored(parts):
    task = instantiate(parts.settings.task["build"])(parts, **parts.settings.task_knobs)
    score(task, stream(task, parts.bank(parts.scored_images), 64))
    return task


def test_the_other_half_of_the_classes_is_scored_against_the_names_of_the_first(banks):
    parts = session(banks, "classes=base", "ood=new")
    images = parts.unknown_images
    assert len(images) == len(parts.scored_images) == 4 and not set(images.ids) & set(parts.scored_images.ids)
    task = scored(parts)
    known, before = task.results(), json.dumps(task.trust)
    found = score_unknown(parts, task, parts.scored_images)
    assert found == {"ood": {"name": "new", "images": 4}} and task.results()["final"].equal(known["final"])
    unknown = parts.scorer(parts.bank(images).tensors()[0])
    both = torch.cat([known["final"], unknown]) / parts.scorer.logit_scale
    expected = roc_auc_score([1] * 4 + [0] * 4, both.double().softmax(1).max(1).values)
    assert task.trust["final"]["auroc_mcm"] == pytest.approx(expected) and "auroc" not in before
    assert task.detection.image_id == [*parts.scored_images.ids, *images.ids]
    assert set(task.trust["global"]) >= {"fpr95_energy", "auroc_max_logit", "class_ece", "adaptive_ece", "aurc", "accuracy_at_0.5"}


def test_another_data_set_is_composed_with_its_knobs_and_decides_the_identity(banks):
    plain, parts = session(banks), session(banks, "ood=emoji", "ood_knobs={group: faces}", "limit=6")
    assert parts.settings["ood_knobs"]["group"] == "faces" and parts.settings["ood_knobs"]["_target_"].endswith(".emoji")
    images = parts.unknown_images
    assert len(images) == 6 and images.name.startswith("emoji")
    assert "unknown" not in run_identity(plain).parts and run_identity(parts).parts["unknown"]
    assert plain.unknown_images is None and score_unknown(plain, scored(plain), plain.scored_images) == {}


def test_images_of_known_classes_are_left_out_with_one_warning_in_a_run(banks, caplog):
    parts = session(banks)
    knobs = {**parts.settings["dataset"], "n_classes": 6}
    parts.settings.config.update(ood="scenes", ood_knobs=knobs)
    assert run_identity(parts).parts["unknown"]
    score_unknown(parts, scored(parts), parts.scored_images)
    (said,) = [record.message for record in caplog.records if "are left out" in record.message]
    assert said.startswith("8 of 12 images of ood=scenes") and len(parts.unknown_images) == 4


def test_a_method_that_adapts_goes_on_from_the_state_of_its_stream(banks):
    parts = session(banks, "classes=base", "ood=new", "task=tta", "method=tda")
    task = scored(parts)
    kept = {name: value.clone() for name, value in task.state.state_dict().items()}
    score_unknown(parts, task, parts.scored_images)
    assert any(not torch.equal(value, task.state.state_dict()[name]) for name, value in kept.items())


def test_an_adapter_with_a_bank_of_its_own_sees_the_unknown_images_there(banks):
    learn = ["task=few_shot", "task.shots=1", "adapter=prolip", "adapter.steps=1", "adapter.search=null"]
    parts = session(banks, "classes=base", "ood=new", *learn)
    task = scored(parts)
    score_unknown(parts, task, parts.scored_images)
    assert task.bank.images.ids == parts.unknown_images.ids and 0 <= task.trust["final"]["auroc_mcm"] <= 1


def test_a_record_keeps_the_scores_of_all_images_and_a_damaged_file_is_refused(banks, tmp_path):
    settings = session(banks, "classes=base", "ood=new", "pictures=0").settings
    evaluate(replace(settings, output=tmp_path / "run", outputs=tmp_path))
    record = read_record(tmp_path / "run")
    kept = record.detection
    assert kept.image_id[:4] == record.predictions.image_id and kept.known.tolist() == [True] * 4 + [False] * 4
    assert kept.cluster[:4] == record.predictions.cluster and all(kept.cluster) and "beside/dnd_fused" in kept.scores
    for row, own in kept.scores.items():
        assert {name: auroc(v[kept.known], v[~kept.known]) for name, v in own.items()} == {
            name: record.metrics["trust"][row][f"auroc_{name}"] for name in ("msp", "max_logit", "energy", "mcm")
        }
    (tmp_path / "run" / UNKNOWN).write_bytes(kept.packed()[:-9])
    with refused("unknown.parquet is damaged", error=RecordError):
        _ = record.detection
    (tmp_path / "run" / UNKNOWN).unlink()
    assert record.detection is None


def test_what_cannot_be_unknown_is_refused(banks):
    with refused("ood=new is a half of the classes", "classes=base ood=new"):
        _ = session(banks, "ood=new").unknown_images
    with refused("every class of ood=scenes is a class of"):
        same = {"ood_knobs": {**session(banks).settings["dataset"]}}
        parts = session(banks)
        parts.settings.config.update(ood="scenes", **same)
        _ = parts.unknown_images
    with refused("ood is base, new or a data set, got emojis", "did you mean emoji?"):
        session(banks, "ood=emojis")
