"""Measures of predicted probabilities: accuracy, accuracy per class, calibration. Tests compare them with torchmetrics.

Importing torchmetrics imports its measures of text, audio and images, with transformers, SciPy and torchvision, which takes longer than a
run on an existing bank.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from multicrop.compare.trust import confidence_measures

BINS = 15


def measures(logits: Float[Tensor, "images classes"], label: Int[Tensor, " images"]) -> dict[str, float]:
    """Measure logits against labels.

    Args:
        logits: Class logits, shape (images, classes).
        label: Class index per image, shape (images,).

    Returns:
        ``accuracy`` (top-1) and ``class_accuracy`` (its mean over classes) from 0 to 1, ``ece`` and ``brier``.
    """
    probability = logits.softmax(1)
    confidence, predicted = probability.max(1)
    correct = predicted == label
    found = {
        "accuracy": correct.double().mean(),
        "class_accuracy": class_accuracy(predicted, label, logits.shape[1]),
        "ece": calibration_error(confidence, correct),
        "brier": brier_scores(logits, label).double().mean(),
    }
    return {name: float(value) for name, value in found.items()}


def trust_measures(logits: Float[Tensor, "images classes"], label: Int[Tensor, " images"]) -> dict[str, float]:
    """Measure confidence: class-wise and adaptive calibration error, and accuracy on the images with the highest confidence.

    Args:
        logits: Class logits, shape (images, classes).
        label: Class index per image, shape (images,).

    Returns:
        ``class_ece`` and the measures of `confidence_measures`.
    """
    probability = logits.softmax(1)
    confidence, predicted = probability.max(1)
    found = confidence_measures(confidence.double().numpy(), (predicted == label).numpy())
    return {"class_ece": float(class_calibration_error(probability, label)), **found}


def brier_scores(logits: Float[Tensor, "images classes"], label: Int[Tensor, " images"]) -> Float[Tensor, " images"]:
    """The Brier score of each image, from 0 to 2: the squared distance of the probabilities to those of the label."""
    return (logits.softmax(1) - one_hot(label, logits.shape[1])).square().sum(1)


def class_accuracy(predicted: Int[Tensor, " images"], label: Int[Tensor, " images"], classes: int) -> Float[Tensor, ""]:
    """Mean of the accuracies of the classes that have images.

    torchmetrics' macro average counts a class without images as wrong where it is predicted.
    """
    images, right = label.bincount(minlength=classes), label[predicted == label].bincount(minlength=classes)
    return (right[images > 0].double() / images[images > 0]).mean()


def calibration_error(confidence: Float[Tensor, " images"], correct: Bool[Tensor, " images"], bins: int = BINS) -> Float[Tensor, ""]:
    """Expected calibration error over bins of equal width (Guo et al. 2017, arXiv 1706.04599), from 0 to 1.

    Args:
        confidence: Probability of the predicted class, shape (images,).
        correct: Whether the prediction is right, shape (images,).
        bins: Number of bins; a value on an edge belongs to the bin above it.
    """
    edges = torch.linspace(0, 1, bins + 1)
    index = torch.bucketize(confidence, edges, right=True) - 1
    gaps = torch.zeros(bins + 1, dtype=torch.float64).index_add_(0, index, correct.double() - confidence.double())
    return gaps.abs().sum() / len(confidence)


def class_calibration_error(
    probability: Float[Tensor, "images classes"], label: Int[Tensor, " images"], bins: int = BINS
) -> Float[Tensor, ""]:
    """Class-wise expected calibration error (Nixon et al., CVPR workshops 2019; Kull et al., NeurIPS 2019), from 0 to 1.

    The probability of a class is binned over all images, as the confidence is for `calibration_error`, and compared with the share of its
    images in the bin. The mean is over the classes that have images.

    Args:
        probability: Probability of each class, shape (images, classes).
        label: Class index per image, shape (images,).
        bins: Number of bins of equal width.
    """
    images, classes = probability.shape
    edges = torch.linspace(0, 1, bins + 1)
    above = (probability >= edges[1]).nonzero(as_tuple=True)  # at most `bins` classes per image; all others are in the first bin
    gaps = torch.zeros(classes, bins + 1, dtype=torch.float64)
    values = probability[above].double()
    gaps.index_put_((above[1], torch.bucketize(probability[above], edges, right=True) - 1), -values, accumulate=True)
    gaps[:, 0] -= probability.sum(0, dtype=torch.float64).index_add(0, above[1], -values)
    own = probability.gather(1, label[:, None])[:, 0]
    gaps.index_put_((label, torch.bucketize(own, edges, right=True) - 1), torch.ones(images, dtype=torch.float64), accumulate=True)
    return (gaps.abs().sum(1) / images)[label.bincount(minlength=classes) > 0].mean()
