"""How far a run's confidence can be trusted: calibration over equal groups, accuracy on the most confident images, unknown classes."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp, softmax

from multicrop.compare.tables import Table
from multicrop.record import Record, Scores

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


def trust_of(record: Record, row: str) -> dict[str, float]:
    """The trust measures of one row of a record: calibration, selective accuracy and, where all logits are kept, held-out classes.

    Args:
        record: A record that keeps logits of the row.
        row: The row.
    """
    scores, predictions = record.scores(row), record.predictions
    confidence, correct = scores.top_probabilities[:, 0].astype(np.float64), predictions.correct(row)
    found = {"accuracy": float(correct.mean()), "adaptive_ece": adaptive_calibration_error(confidence, correct)}
    found |= {f"accuracy_at_{coverage}": selective_accuracy(confidence, correct, coverage) for coverage in COVERAGES}
    if scores.log_probabilities is not None:
        logits, known = held_out(scores, predictions.label)
        for name, values in detection_scores(logits).items() if known.any() and not known.all() else ():
            if name != "mcm":  # a record does not keep the logit scale
                found |= {f"auroc_{name}": auroc(values[known], values[~known]), f"fpr95_{name}": fpr95(values[known], values[~known])}
    return found


def trust_table(rows: Sequence[Mapping]) -> Table:
    """The table of trust measures; missing fields are empty.

    Args:
        rows: Run, row and the measures of `trust_of`.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("run", "row")))
    columns = {"run": lambda r: str(r["run"]), "row": lambda r: str(r["row"])}
    columns |= {name: lambda r, name=name: f"{100 * r[name]:.1f}" if name in r else "" for name in names}
    notes = (
        "accuracy_at_S: of the share S of the images with the highest confidence; auroc and fpr95: the second half of the classes unknown",
    )
    return Table("Trust measures, %", "trust", columns, rows, notes=notes)
