"""The measures of a run against torchmetrics, which a run on a bank at hand does not import."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from multicrop.runs.measures import BINS, calibration_error, class_accuracy, class_calibration_error, measures, trust_measures


@pytest.mark.parametrize(("images", "classes", "scale"), [(2, 2, 1.0), (40, 3, 3.0), (200, 7, 0.5), (500, 30, 8.0)])
def test_they_are_those_of_torchmetrics_where_every_class_has_images(images, classes, scale, generator):
    logits, label = scale * torch.randn(images, classes, generator=generator), torch.arange(images) % classes
    found = measures(logits, label)
    expected = {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "class_accuracy": MulticlassAccuracy(classes, average="macro"),
        "ece": MulticlassCalibrationError(classes, n_bins=BINS),
    }
    for name, metric in expected.items():
        assert found[name] == pytest.approx(float(metric(logits.softmax(1), label)), abs=1e-6), name


def test_class_accuracy_is_over_the_classes_that_have_images_and_torchmetrics_macro_is_not():
    label = torch.tensor([0, 0, 0, 1, 1, 4])
    predicted = torch.tensor([0, 0, 2, 1, 3, 4])  # classes 2 and 3 are predicted and have no images, class 5 is neither
    assert float(class_accuracy(predicted, label, 6)) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert float(MulticlassAccuracy(6, average="macro")(torch.eye(6)[predicted], label)) == pytest.approx((2 / 3 + 1 / 2 + 1) / 5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_above_it():
    confidence, correct = torch.tensor([0.5, 0.6, 1.0]), torch.tensor([False, True, True])
    assert calibration_error(confidence, correct, bins=2).item() == pytest.approx(abs(1 - 1.1) / 3)


def test_class_calibration_error_is_counted_bin_by_bin_over_the_classes_that_have_images(generator):
    probability = (2 * torch.randn(50, 4, generator=generator)).softmax(1)
    label = torch.arange(50) % 3  # class 3 is predicted and has no images
    errors = []
    for c in range(3):
        gaps = [0.0] * (BINS + 1)
        for p, y in zip(probability[:, c].tolist(), label.tolist(), strict=True):
            gaps[int(p * BINS)] += (y == c) - p
        errors.append(sum(abs(gap) for gap in gaps) / 50)
    assert class_calibration_error(probability, label).item() == pytest.approx(sum(errors) / 3, abs=1e-6)
    assert trust_measures(probability.log(), label)["class_ece"] == pytest.approx(sum(errors) / 3, abs=1e-6)
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert class_calibration_error(sure, torch.tensor([0, 1])).item() == pytest.approx((0.5 + 0.5) / 2)
