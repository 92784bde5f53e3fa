"""Trust measures against scikit-learn, torchmetrics and plain counting, and the command that prints them."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from records import NAMES, write
from sklearn.metrics import roc_auc_score, roc_curve
from torchmetrics.classification import BinaryAUROC

from multicrop.cli import main
from multicrop.compare import trust
from multicrop.compare.leaderboard import blocks
from multicrop.compare.page import page_data
from multicrop.compare.run import read_run
from multicrop.compare.trust_tables import methods_table, stability, trust_of
from multicrop.record import Predictions, Scores, read_record, write_record


@pytest.fixture
def scored():
    """Scores with ties of 80 known and 50 unknown images."""
    draw = np.random.default_rng(3)
    return draw.normal(0.7, 0.5, 80).round(1), draw.normal(0.0, 0.5, 50).round(1)


def test_auroc_is_sklearns_and_torchmetrics(scored):
    known, unknown = scored
    labels, scores = np.r_[np.ones(80), np.zeros(50)], np.r_[known, unknown]
    assert len(np.unique(scores)) < 40
    assert trust.auroc(known, unknown) == pytest.approx(roc_auc_score(labels, scores))
    squashed = torch.from_numpy((scores - scores.min()) / np.ptp(scores))  # a sigmoid may give equal scores different values
    assert trust.auroc(known, unknown) == pytest.approx(float(BinaryAUROC()(squashed, torch.from_numpy(labels).long())), abs=1e-6)
    assert trust.auroc(np.ones(3), np.ones(5)) == 0.5 and trust.auroc(np.ones(3), np.zeros(5)) == 1.0


def test_fpr95_is_the_first_threshold_of_the_curve_that_keeps_95_percent(scored):
    known, unknown = scored
    fpr, tpr, _ = roc_curve(np.r_[np.ones(80), np.zeros(50)], np.r_[known, unknown], drop_intermediate=False)
    assert trust.fpr95(known, unknown) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])
    exact = np.arange(20.0)  # 19 of 20 are exactly 95 %
    assert trust.fpr95(exact, np.array([0.5, 1.0, 3.0])) == pytest.approx(2 / 3)


def test_detection_scores_are_their_formulas(scored):
    logits = np.random.default_rng(1).normal(0, 9, (6, 4))
    found = trust.detection_scores(logits, logit_scale=30.0)
    for i, row in enumerate(logits):
        total = sum(math.exp(x) for x in row)
        assert found["msp"][i] == pytest.approx(math.exp(max(row)) / total) and found["max_logit"][i] == max(row)
        assert found["energy"][i] == pytest.approx(math.log(total))
        assert found["mcm"][i] == pytest.approx(math.exp(max(row) / 30) / sum(math.exp(x / 30) for x in row))


def test_selective_accuracy_counts_the_most_confident_images():
    confidence, correct = np.array([0.9, 0.8, 0.8, 0.8, 0.1]), np.array([True, True, False, False, True])
    assert trust.selective_accuracy(confidence, correct, 0.2) == 1.0
    assert trust.selective_accuracy(confidence, correct, 0.4) == pytest.approx((1 + 1 / 3) / 2)  # one of three equal ones
    assert trust.selective_accuracy(confidence, correct, 1.0) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="above 0 and at most 1, got 0"):
        trust.selective_accuracy(confidence, correct, 0.0)


def test_adaptive_calibration_error_is_the_mean_gap_of_equal_groups():
    draw = np.random.default_rng(2)
    confidence, correct = draw.random(60), draw.random(60) < 0.5
    pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True))
    groups = [pairs[first : first + 15] for first in range(0, 60, 15)]
    gaps = [abs(sum(p for p, _ in group) - sum(right for _, right in group)) / 60 for group in groups]
    assert trust.adaptive_calibration_error(confidence, correct, groups=4) == pytest.approx(sum(gaps))
    assert trust.adaptive_calibration_error(np.array([0.8]), np.array([True])) == pytest.approx(0.2)


def test_area_under_risk_coverage_is_the_mean_risk_of_all_coverages():
    draw = np.random.default_rng(4)
    confidence, correct = draw.random(40), draw.random(40) < 0.7
    order = sorted(range(40), key=lambda i: -confidence[i])
    risks = [sum(not correct[i] for i in order[:kept]) / kept for kept in range(1, 41)]
    assert trust.area_under_risk_coverage(confidence, correct) == pytest.approx(sum(risks) / 40)
    tied = trust.area_under_risk_coverage(np.array([0.9, 0.5, 0.5]), np.array([True, False, True]))
    assert tied == pytest.approx((0 + 0.5 / 2 + 1 / 3) / 3)


def record(folder, *, every=True):
    """A record of 80 images of 4 classes with logits."""
    draw = np.random.default_rng(5)
    labels = np.arange(80) % 4
    logits = 2.5 * np.eye(4)[labels] + draw.normal(0, 1, (80, 4))
    lse = np.log(np.exp(logits).sum(1))
    order = np.argsort(-logits, axis=1)
    kept = Scores(order, np.take_along_axis(logits, order, 1), lse, logits - lse[:, None] if every else None)
    rows = dict.fromkeys(("global", "crops_mean", "aggregated", "final"), order[:, 0])
    predictions = Predictions([f"{i:03d}" for i in range(80)], labels, rows, [""] * 80, scores={"global": kept, "final": kept})
    data = {"dataset": "zoo", "split": "test", "fingerprint": "f", "class_names": NAMES}
    numbers = {row: {"accuracy": 0.5, "views": 1} for row in rows}
    folder.mkdir()
    write_record(
        folder,
        config={"task": {"name": "zero_shot"}},
        metrics={"rows": numbers},
        predictions=predictions,
        environment={},
        data=data,
        examples=[],
    )
    return logits, labels


def test_the_command_prints_the_measures_of_records(tmp_path, capsys):
    logits, labels = record(tmp_path / "all")
    record(tmp_path / "top", every=False)
    with pytest.raises(SystemExit) as ended:
        main(["trust", str(tmp_path / "all"), str(tmp_path / "top"), "--row", "final", "--format", "csv"])
    assert ended.value.code == 0
    one, two = csv.DictReader(io.StringIO(capsys.readouterr().out))
    known = labels < 2
    energy = np.log(np.exp(logits[:, :2]).sum(1))
    assert float(one["auroc_energy"]) == pytest.approx(roc_auc_score(known, energy), abs=0.01) and two["auroc_energy"] == ""
    assert float(one["accuracy"]) == float(two["accuracy"]) == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-4)
    assert float(one["accuracy_at_0.5"]) > float(one["accuracy"])


def test_unknown_classes_need_all_logits():
    with pytest.raises(ValueError, match="logits=all"):
        trust.held_out(Scores(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1)), np.zeros(1, dtype=int))


def recorded(folder, crop_seed, accuracy, measures, draw):
    """A run that kept measures of confidence."""
    run, trusted = read_run(write(folder, accuracy=accuracy, draw=draw)), {"global": {"aurc": 0.3}, "final": measures}
    return replace(run, config=run.config | {"crop_seed": crop_seed}, metrics=run.metrics | {"trust": trusted})


def test_methods_have_means_of_their_runs_and_stability_over_crop_seeds(tmp_path):
    first, second = {"aurc": 0.2, "auroc_mcm": 0.8}, {"aurc": 0.1, "auroc_mcm": 0.7, "class_ece": 0.5}
    runs = [recorded(tmp_path / str(seed), seed, 0.7, own, draw=seed) for seed, own in enumerate((first, second))]
    found = {row["method"]: row for row in methods_table(blocks(runs, "global")[0]).rows}
    (method,) = (row for name, row in found.items() if "dnd" in name)
    one, two = (run.sorted_predictions.rows["final"] for run in runs)
    right = [run.sorted_predictions.correct().mean() for run in runs]
    assert method["aurc"] == pytest.approx(0.15) and method["auroc_mcm"] == pytest.approx(0.75) and "class_ece" not in method
    assert method["same_over_crop_seeds"] == pytest.approx((one == two).mean()) and 0 < (one == two).mean() < 1
    assert method["spread_over_crop_seeds"] == pytest.approx(np.std(right, ddof=1))
    assert found["global view"]["aurc"] == 0.3 and found["global view"]["same_over_crop_seeds"] == 1
    assert stability(runs[:1]) == {} and stability([runs[0], runs[0]]) == {}
    cells = [entry["cells"] for entry in page_data(blocks(runs, "global"), "global", 0)["entries"]]
    assert {"AURC %": "15.0", "AUROC (MCM) %": "75.0"}.items() <= next(line for line in cells if "dnd" in line["method"]).items()


def test_a_record_of_measures_is_not_measured_again(tmp_path):
    run = recorded(tmp_path / "run", 0, 0.7, {"aurc": 0.2, "auroc_mcm": 0.8}, draw=0)
    assert trust_of(run, "final") == {"accuracy": run.predictions.accuracy(), "aurc": 0.2, "auroc_mcm": 0.8}


def test_halves_of_a_record_with_a_scale_have_mcm(tmp_path):
    logits, labels = record(tmp_path / "all")
    kept = read_record(tmp_path / "all")
    found, half = trust_of(replace(kept, metrics=kept.metrics | {"logit_scale": 2.0}), "final"), np.exp(logits[:, :2] / 2)
    mcm = half.max(1) / half.sum(1)
    assert found["auroc_mcm"] == pytest.approx(roc_auc_score(labels < 2, mcm), abs=0.01)
