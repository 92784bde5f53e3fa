"""Measures of a row of a run over a stream."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError


def measures(n_classes: int, row: str) -> MetricCollection:
    """The measures of a row over a stream, named ``test/...`` for the final row and ``test/ROW/...`` for others."""
    metrics = {
        "accuracy": MulticlassAccuracy(n_classes, average="micro"),
        "class_accuracy": ClassAccuracy(n_classes),
        "ece": MulticlassCalibrationError(n_classes, n_bins=15),
        "brier": BrierScore(),
    }
    return MetricCollection(metrics, prefix="test/" if row == "final" else f"test/{row}/")


class BrierScore(MeanMetric):
    """Mean over images of the squared distance between the probabilities and the one-hot label (Brier 1950), from 0 to 2."""

    def update(self, probability: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]) -> None:
        """Count a batch."""
        super().update((probability - one_hot(label, probability.shape[1])).square().sum(1))


class ClassAccuracy(Metric):
    """Mean of the accuracies of the classes that have images.

    torchmetrics' macro average counts a class without images as wrong where it is predicted.

    Args:
        n_classes: Number of classes.
    """

    right: Tensor
    images: Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        for count in ("right", "images"):
            self.add_state(count, torch.zeros(n_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, probability: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]) -> None:
        """Count a batch."""
        self.images += label.bincount(minlength=len(self.images))
        self.right += label[probability.argmax(1) == label].bincount(minlength=len(self.images))

    def compute(self) -> Tensor:
        """The mean over classes."""
        seen = self.images > 0
        return (self.right[seen] / self.images[seen]).mean()
