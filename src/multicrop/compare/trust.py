"""Measures of confidence: calibration over equal groups, accuracy on the most confident images, detection of unknown classes."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp, softmax

from multicrop.record import Scores

Numbers = Float[np.ndarray, " images"]
KEPT = 0.95  # of the images of known classes, at the threshold of FPR95
COVERAGES = (0.9, 0.8, 0.5)  # of the images, most confident first
GROUPS = 15


def detection_scores(logits: Float[np.ndarray, "images classes"], *, logit_scale: float = 1.0) -> dict[str, Numbers]:
    """Score how far images look like one of the classes; larger is more like one.

    Args:
        logits: Class logits.
        logit_scale: Multiplier of cosine similarities in the logits, for ``mcm``.

    Returns:
        ``msp``: the largest softmax probability; ``max_logit``; ``energy``: logsumexp (Liu et al., NeurIPS 2020); ``mcm``: the largest
        softmax probability of the bare cosines, temperature 1 (maximum concept matching, Ming et al., NeurIPS 2022).
    """
    return {
        "msp": softmax(logits, axis=1).max(1),
        "max_logit": logits.max(1),
        "energy": np.asarray(logsumexp(logits, axis=1)),
        "mcm": softmax(logits / logit_scale, axis=1).max(1),
    }


def detection_measures(
    known: Float[np.ndarray, "known classes"], unknown: Float[np.ndarray, "unknown classes"], *, logit_scale: float | None = None
) -> dict[str, float]:
    """AUROC and FPR95 of each of the scores of `detection_scores`, as ``auroc_NAME`` and ``fpr95_NAME``.

    Args:
        known: Logits of images of known classes.
        unknown: Logits of images of unknown classes.
        logit_scale: Multiplier of cosine similarities in the logits; None leaves ``mcm`` out.
    """
    own, other = (detection_scores(logits, logit_scale=logit_scale or 1.0) for logits in (known, unknown))
    names = [name for name in own if name != "mcm" or logit_scale]
    return {f"{measure.__name__}_{name}": measure(own[name], other[name]) for name in names for measure in (auroc, fpr95)}


def auroc(known: Float[np.ndarray, " known"], unknown: Float[np.ndarray, " unknown"]) -> float:
    """The probability that an image of a known class scores above one of an unknown class; equal scores count half.

    Args:
        known: Scores of images of known classes.
        unknown: Scores of images of unknown classes.
    """
    ordered = np.sort(unknown)
    below, not_above = np.searchsorted(ordered, known, "left"), np.searchsorted(ordered, known, "right")
    return float((below + not_above).mean() / (2 * len(unknown)))


def fpr95(known: Float[np.ndarray, " known"], unknown: Float[np.ndarray, " unknown"]) -> float:
    """The share of unknown images at or above the highest threshold that keeps 95 % of the known images.

    Known is the positive class. MCM and LoCoOp take the threshold nearest to 95 %, OpenOOD the unknown as positive: other numbers.

    Args:
        known: Scores of images of known classes.
        unknown: Scores of images of unknown classes.
    """
    kept = int(np.ceil(KEPT * len(known) - 1e-9))
    return float((unknown >= np.sort(known)[::-1][kept - 1]).mean())


def selective_accuracy(confidence: Numbers, correct: Bool[np.ndarray, " images"], coverage: float) -> float:
    """The accuracy on the share `coverage` of the images with the highest confidence, at least one; of equal ones all are expected alike.

    Args:
        confidence: Confidence of each prediction.
        correct: Whether it is right.
        coverage: Share of the images, above 0 and at most 1.

    Raises:
        ValueError: If the coverage is out of range.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage is a share of the images, above 0 and at most 1, got {coverage}")
    kept = max(1, round(coverage * len(confidence)))
    threshold = np.sort(confidence)[::-1][kept - 1]
    above, at = confidence > threshold, confidence == threshold
    return float((correct[above].sum() + (kept - above.sum()) * correct[at].mean()) / kept)


def area_under_risk_coverage(confidence: Numbers, correct: Bool[np.ndarray, " images"]) -> float:
    """The mean, over all coverages, of the error on the images with the highest confidence; 0 is best, a random order gives the error.

    Images of equal confidence count with their mean error. Source: Geifman et al., ICLR 2019 (AURC).

    Args:
        confidence: Confidence of each prediction.
        correct: Whether it is right.
    """
    _, group, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    errors = np.repeat(np.bincount(group, weights=~correct) / counts, counts)
    return float((errors.cumsum() / np.arange(1, len(errors) + 1)).mean())


def adaptive_calibration_error(confidence: Numbers, correct: Bool[np.ndarray, " images"], groups: int = GROUPS) -> float:
    """Expected calibration error over groups of equal size instead of bins of equal width (Nixon et al., CVPR workshops 2019).

    Args:
        confidence: Probability of the predicted class.
        correct: Whether the prediction is right.
        groups: Number of groups, by confidence.
    """
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, groups) if len(part)]
    gaps = [len(part) * abs(correct[part].mean() - confidence[part].mean()) for part in parts]
    return float(sum(gaps) / len(confidence))


def confidence_measures(confidence: Numbers, correct: Bool[np.ndarray, " images"]) -> dict[str, float]:
    """Adaptive calibration error, area under the risk-coverage curve, and selective accuracy at each of COVERAGES.

    Args:
        confidence: Probability of the predicted class.
        correct: Whether the prediction is right.
    """
    found = {"adaptive_ece": adaptive_calibration_error(confidence, correct), "aurc": area_under_risk_coverage(confidence, correct)}
    return found | {f"accuracy_at_{coverage}": selective_accuracy(confidence, correct, coverage) for coverage in COVERAGES}


def held_out(scores: Scores, labels: Int[np.ndarray, " images"]) -> tuple[Float[np.ndarray, "images known"], Bool[np.ndarray, " images"]]:
    """Take the second half of the classes as unknown: the logits of the first half, and whether an image is of a known class.

    Args:
        scores: Scores with all logits.
        labels: Class index per image.

    Raises:
        ValueError: If the record does not keep all logits.
    """
    if scores.log_probabilities is None:
        raise ValueError("unknown classes need the logits of all classes: run again with logits=all")
    n_known = -(-scores.log_probabilities.shape[1] // 2)
    logits = scores.log_probabilities.astype(np.float64) + scores.log_sum_exp[:, None]
    return logits[:, :n_known], labels < n_known
