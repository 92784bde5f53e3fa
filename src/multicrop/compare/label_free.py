"""Criteria that choose a setting without labels: mutual information, agreement with the global view, consistency over draws of crops."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import entropy

CRITERIA = ("gate", "mutual_information", "agreement", "consistency")
LEAST = 0.5  # of agreement or consistency: more images with the same class than with another


def mutual_information(probability: Float[np.ndarray, "images classes"]) -> float:
    """Information between image and predicted class: entropy of the mean prediction minus mean entropy of the predictions.

    Used to choose models without labels by Bridle, Heading & MacKay (NeurIPS 1991); high where predictions are sure and cover all classes.

    Args:
        probability: Class probabilities.

    Returns:
        Nats.
    """
    return float(entropy(probability.mean(0)) - entropy(probability, axis=1).mean())


def agreement(predictions: Int[np.ndarray, " images"], others: Int[np.ndarray, " images"]) -> float:
    """Share of the images with the same predicted class, from 0 to 1.

    Between crops and global view it measures their agreement; between two draws of crops, the consistency of a setting.

    Args:
        predictions: Class index per image.
        others: Class index per image by another scorer.

    Returns:
        The share.
    """
    return float((predictions == others).mean())


@dataclass(frozen=True)
class Unlabelled:
    """What is known of settings without labels; row 0 is the global view.

    Args:
        predictions: Class index per setting and image.
        information: Mutual information, nats.
        consistency: Share of images with one class over two draws of crops.
        gap: Mean entropy of the crops above that of the global view, nats.
        local: Whether a setting reads crops and is not fused with the global view.
    """

    predictions: Int[np.ndarray, "settings images"]
    information: Float[np.ndarray, " settings"]
    consistency: Float[np.ndarray, " settings"]
    gap: Float[np.ndarray, " settings"]
    local: Bool[np.ndarray, " settings"]


def choose_without_labels(criterion: str, known: Unlabelled, *, gate: float) -> int:
    """Choose a setting by a criterion that reads no labels.

    Fusion with the global view raises agreement and consistency whatever it does to accuracy, so only purely local settings are compared by
    them, and the global view is chosen where the best has less than a half.

    Args:
        criterion: ``"mutual_information"`` (highest), ``"gate"`` (highest where crops are not much less sure than the global view),
            ``"agreement"`` with the global view, or ``"consistency"`` over draws of crops.
        known: The settings.
        gate: Largest gap of settings that ``"gate"`` considers, nats.

    Returns:
        The row of the chosen setting.

    Raises:
        ValueError: If there is no such criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"task.criterion is one of {', '.join(CRITERIA)}, got {criterion!r}")
    if criterion in ("gate", "mutual_information"):
        closed = (known.gap > gate) & (criterion == "gate")
        return int(np.where(closed, -np.inf, known.information).argmax())
    agreements = [agreement(row, known.predictions[0]) for row in known.predictions]
    values = known.consistency if criterion == "consistency" else np.asarray(agreements)
    best = int(np.where(known.local, values, -1.0).argmax())
    return best if known.local.any() and values[best] >= LEAST else 0
