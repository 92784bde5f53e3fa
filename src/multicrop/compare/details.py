"""Where methods differ: classes, domains, and which images one gets right that another gets wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multicrop.compare.leaderboard import Entry
from multicrop.compare.statistics import Comparison, compare_runs, holm_family
from multicrop.record import Predictions


@dataclass(frozen=True)
class Part:
    """One class or domain: its images, the accuracy of method and baseline, and their comparison, corrected over this method's parts."""

    name: str
    images: int
    accuracy: float
    baseline: float
    comparison: Comparison
    p_holm: float | None


def by_class(entry: Entry) -> list[Part]:
    """The comparison class by class, greatest difference first; raises ValueError when the entry has no baseline."""
    names = entry.records[0].class_names
    return _parts(entry, [names[c] for c in entry.records[0].predictions.label])


def by_domain(entry: Entry) -> list[Part]:
    """The comparison domain by domain; raises ValueError when the images have no domains."""
    if not entry.records[0].domains:
        raise ValueError(f"the images of {entry.records[0].dataset} have no domains; use --by class")
    return _parts(entry, entry.records[0].predictions.domain)


def _parts(entry: Entry, groups: Sequence[str]) -> list[Part]:
    if entry.baseline is None:
        raise ValueError(f"{entry.label} is not paired with the baseline; choose a baseline on the same images")
    correct, names = entry.correct, np.asarray(groups)
    members = {name: np.flatnonzero(names == name) for name in sorted(set(names.tolist()))}
    compared = {name: compare_runs(correct[:, index], entry.baseline[:, index]) for name, index in members.items()}
    corrected = holm_family(list(compared.values()))
    parts = [
        Part(name, len(index), float(correct[:, index].mean()), float(entry.baseline[:, index].mean()), compared[name], p)
        for (name, index), p in zip(members.items(), corrected, strict=True)
    ]
    return sorted(parts, key=lambda part: -part.comparison.difference)


def agreement(entries: Sequence[Entry]) -> np.ndarray:
    """The share of images on which the first runs of two methods predict the same class (methods, methods)."""
    predictions = np.stack([entry.records[0].predictions.rows["final"] for entry in entries])
    return (predictions[:, None] == predictions[None]).mean(-1)


def rescues(entries: Sequence[Entry]) -> np.ndarray:
    """Images that the first run of the row's method gets right and that of the column's wrong (methods, methods)."""
    correct = np.stack([entry.records[0].predictions.correct() for entry in entries])
    return (correct[:, None] & ~correct[None]).sum(-1)


def class_table(predictions: Predictions, class_names: Sequence[str]) -> list[dict[str, object]]:
    """One row per class that has images: name, images, and the accuracy of the final row and of the global view."""
    label = predictions.label
    final, base = (predictions.correct(row) for row in ("final", "global"))
    counts = np.bincount(label, minlength=len(class_names)).tolist()
    return [
        {"class": name, "images": n, "accuracy": float(final[label == c].mean()), "global": float(base[label == c].mean())}
        for c, (name, n) in enumerate(zip(class_names, counts, strict=True))
        if n
    ]
