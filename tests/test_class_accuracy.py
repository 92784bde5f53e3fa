"""Class accuracy is over the classes that have images."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from multicrop.runs.measures import ClassAccuracy, measures


def test_class_accuracy_is_over_the_classes_that_have_images_and_torchmetrics_macro_is_not(generator):
    label = torch.tensor([0, 0, 0, 1, 1, 4])
    logits = torch.eye(6)[torch.tensor([0, 0, 2, 1, 3, 4])]  # classes 2 and 3 are predicted and have no images, class 5 is neither
    measure = ClassAccuracy(6)
    for part in ([0, 1], [2, 3, 4], [5]):
        measure.update(logits[part], label[part])
    assert float(measure.compute()) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert float(MulticlassAccuracy(6, average="macro")(logits, label)) == pytest.approx((2 / 3 + 1 / 2 + 1) / 5)
    every, balanced = torch.randn(60, 4, generator=generator).softmax(1), torch.arange(60) % 4
    found = measures(4, "global")
    found.update(every, balanced)
    values = found.compute()
    assert float(values["test/global/class_accuracy"]) == pytest.approx(float(MulticlassAccuracy(4, average="macro")(every, balanced)))
    assert float(values["test/global/accuracy"]) == pytest.approx(float((every.argmax(1) == balanced).float().mean()))
