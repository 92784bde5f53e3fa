"""Sums of predictions that merge exactly: whole numbers alone, so that any division into parts gives the same to the last bit."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np

from multicrop.record.predictions import Predictions

TOP_K = 5
BINS = 15  # of the calibration error
UNIT = 60  # sums of fractions count in units of 2 ** -60
HALF = UNIT // 2
FLUSH = 2**22  # pairs of label and prediction that are counted at once


def fixed_sum(values: np.ndarray) -> int:
    """The sum of values from 0 to below 8 in units of 2 ** -60, to which each is rounded (float32 over 2e-11: exactly)."""
    units = np.rint(values.astype(np.float64) * 2.0**UNIT).astype(np.int64)
    return (int((units >> HALF).sum()) << HALF) + int((units & (2**HALF - 1)).sum())


@dataclass(frozen=True)
class RowSums:
    """Sums of one row over images.

    Args:
        right: Images whose prediction is the label.
        top5: Images whose label is among the five best classes.
        rescued: Images that this row classifies correctly and the row ``global`` does not.
        lost: Images that the row ``global`` classifies correctly and this row does not.
        brier: Sum of the Brier scores, in units of 2 ** -60.
        bins: Per bin of confidence: images, right ones, and the sum of confidences in units of 2 ** -60.
    """

    right: int
    top5: int
    rescued: int
    lost: int
    brier: int
    bins: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, right: np.ndarray, base: np.ndarray, rank: np.ndarray, confidence: np.ndarray, brier: np.ndarray) -> "RowSums":
        """The sums of some images; all arrays have shape (images,).

        Args:
            right: Whether the prediction is the label.
            base: Whether the prediction of the row ``global`` is.
            rank: Number of classes above the label.
            confidence: Probability of the predicted class.
            brier: Brier score of the image.
        """
        place = np.searchsorted(np.linspace(0, 1, BINS + 1, dtype=np.float32), confidence, side="right") - 1
        members = [place == number for number in range(BINS + 1)]
        bins = tuple((int(its.sum()), int(right[its].sum()), fixed_sum(confidence[its])) for its in members)
        changes = int((right & ~base).sum()), int((base & ~right).sum())
        return cls(int(right.sum()), int((rank < TOP_K).sum()), *changes, fixed_sum(brier), bins)

    def __add__(self, other: "RowSums") -> "RowSums":
        bins = tuple(tuple(map(sum, zip(a, b, strict=True))) for a, b in zip(self.bins, other.bins, strict=True))
        numbers = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name != "bins"}
        return RowSums(**numbers, bins=bins)  # type: ignore[arg-type]

    def measures(self, images: int) -> dict[str, float]:
        """Accuracy, top-5 accuracy, expected calibration error and mean Brier score, from the exact sums."""
        gaps = sum(abs(Fraction(right) - Fraction(confidence, 2**UNIT)) for _, right, confidence in self.bins)
        mean = {"accuracy": Fraction(self.right), "top5": Fraction(self.top5), "ece": gaps, "brier": Fraction(self.brier, 2**UNIT)}
        return {name: float(value / images) for name, value in mean.items()}


@dataclass(frozen=True)
class Sums:
    """Sums of predictions.

    Args:
        images: Scored images.
        unreadable: Images that could not be read, and are in no other sum.
        rows: The sums of each row.
    """

    images: int
    unreadable: int
    rows: Mapping[str, RowSums]

    @classmethod
    def of(cls, found: Predictions, confidence: Mapping[str, np.ndarray], brier: Mapping[str, np.ndarray], unreadable: int = 0) -> "Sums":
        """The sums of predictions.

        Args:
            found: The predictions of images.
            confidence: The probability of the predicted class by row, shape (images,).
            brier: The Brier score by row, shape (images,).
            unreadable: Images that could not be read, which are not among the predictions.
        """
        right = {row: found.correct(row) for row in found.rows}
        rows = {row: RowSums.of(right[row], right["global"], found.ranks[row], confidence[row], brier[row]) for row in found.rows}
        return cls(len(found), unreadable, rows)

    def __add__(self, other: "Sums") -> "Sums":
        rows = {row: sums + other.rows[row] for row, sums in self.rows.items()}
        return Sums(self.images + other.images, self.unreadable + other.unreadable, rows)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Sums":
        """The sums that ``dataclasses.asdict`` and JSON made plain."""
        rows = {row: RowSums(**{**values, "bins": tuple(map(tuple, values["bins"]))}) for row, values in facts["rows"].items()}
        return cls(facts["images"], facts["unreadable"], rows)


class Confusion:
    """How often each class is predicted for each label, counted part by part; memory grows with the pairs that occur, not with images."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._keys, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._new: list[np.ndarray] = []
        self._waiting = 0

    def add(self, label: np.ndarray, predicted: np.ndarray) -> None:
        """Count some images."""
        self._new.append(label.astype(np.int64) * self.classes + predicted)
        self._waiting += len(label)
        if self._waiting >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        keys, counts = np.unique(np.concatenate([*self._new, self._keys[:0]]), return_counts=True)
        self._keys, where = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        merged = np.zeros(len(self._keys), np.int64)
        np.add.at(merged, where, np.concatenate([self._counts, counts]))
        self._counts, self._new, self._waiting = merged, [], 0

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, predictions and numbers of images of the pairs that occur, by label and then prediction."""
        self._flush()
        return self._keys // self.classes, self._keys % self.classes, self._counts

    def class_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have images."""
        label, predicted, count = self.counts()
        images, right = np.zeros(self.classes, np.int64), np.zeros(self.classes, np.int64)
        np.add.at(images, label, count)
        np.add.at(right, label[label == predicted], count[label == predicted])
        return float((right[images > 0] / images[images > 0]).mean())
