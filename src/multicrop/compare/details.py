"""Where methods differ: per class, per domain, and per pair of methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multicrop.compare.leaderboard import Entry
from multicrop.compare.statistics import Comparison, compare_runs, holm_family
from multicrop.record import Predictions


@dataclass(frozen=True)
class Part:
    """One class or domain: number of images, accuracy of method and baseline, comparison, and p-value corrected over the method's parts."""

    name: str
    images: int
    accuracy: float
    baseline: float
    comparison: Comparison
    p_holm: float | None


def by_class(entry: Entry) -> list[Part]:
    """Compare a method with its baseline per class.

    Args:
        entry: A paired entry of a block.

    Returns:
        One part per class that has images, largest difference first.

    Raises:
        ValueError: If the entry is not paired with a baseline.
    """
    return _parts(entry, entry.runs[0].sorted_predictions.label, entry.runs[0].class_names)


def by_domain(entry: Entry) -> list[Part]:
    """Compare a method with its baseline per domain.

    Args:
        entry: A paired entry of a block.

    Returns:
        One part per domain, largest difference first.

    Raises:
        ValueError: If the images have no domains, or the entry is not paired with a baseline.
    """
    if not entry.runs[0].domains:
        raise ValueError(f"the images of {entry.runs[0].dataset} have no domains; use --by class")
    names, group = np.unique(entry.runs[0].sorted_predictions.domain, return_inverse=True)
    return _parts(entry, group, names.tolist())


def group_accuracy(correct: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """Accuracy per group of images, for instance per class.

    Args:
        correct: Correctness, shape (images,) or (runs, images).
        group: Group index per image, shape (images,).
        count: Number of groups.

    Returns:
        Accuracy from 0 to 1, mean over runs, shape (count,); NaN for a group without images.
    """
    correct = np.atleast_2d(correct)
    right = np.bincount(group, weights=correct.sum(0), minlength=count)
    images = np.bincount(group, minlength=count)
    return np.divide(right, len(correct) * images, out=np.full(count, np.nan), where=images > 0)


def _parts(entry: Entry, group: np.ndarray, names: Sequence[str]) -> list[Part]:
    """Compare a method with its baseline per group of images; `group` has the place in `names` of the group of each image."""
    if entry.baseline is None:
        raise ValueError(f"{entry.label} is not paired with the baseline; choose a baseline on the same images")
    correct, baseline = entry.correct, entry.baseline
    members: dict[int, np.ndarray] = {index: np.flatnonzero(group == index) for index in np.unique(group).tolist()}
    compared = []
    for images in members.values():
        clusters = [entry.clusters[int(image)] for image in images] if entry.clusters else None
        compared.append(compare_runs(correct[:, images], baseline[:, images], clusters=clusters))
    own, base = (group_accuracy(values, group, len(names)).tolist() for values in (correct, baseline))
    parts = [
        Part(names[index], len(images), own[index], base[index], comparison, p_holm)
        for (index, images), comparison, p_holm in zip(members.items(), compared, holm_family(compared), strict=True)
    ]
    return sorted(parts, key=lambda part: (-part.comparison.difference, part.name))


def agreement(entries: Sequence[Entry]) -> np.ndarray:
    """Share of images for which the first runs of two methods predict the same class.

    Args:
        entries: Entries of one block.

    Returns:
        Shares from 0 to 1, shape (methods, methods).
    """
    predicted = np.stack([entry.runs[0].sorted_predictions.rows["final"] for entry in entries])
    return (predicted[:, None] == predicted[None]).mean(-1)


def rescues(entries: Sequence[Entry]) -> np.ndarray:
    """Number of images that one method classifies correctly and another does not, in the first run of each.

    Args:
        entries: Entries of one block.

    Returns:
        Counts, shape (methods, methods): the row's method is right, the column's is wrong.
    """
    correct = np.stack([entry.runs[0].sorted_predictions.correct() for entry in entries])
    return (correct[:, None] & ~correct[None]).sum(-1)


def class_table(predictions: Predictions, class_names: Sequence[str]) -> list[dict[str, object]]:
    """Accuracy per class of one run.

    Args:
        predictions: Labels and predictions of the run.
        class_names: Name per class.

    Returns:
        One row per class that has images: ``class``, ``images``, ``accuracy`` of the final row, ``global`` accuracy of the global view.
    """
    counts = np.bincount(predictions.label, minlength=len(class_names)).tolist()
    final, base = (group_accuracy(predictions.correct(row), predictions.label, len(counts)).tolist() for row in ("final", "global"))
    rows = zip(class_names, counts, final, base, strict=True)
    return [{"class": name, "images": n, "accuracy": right, "global": whole} for name, n, right, whole in rows if n]
