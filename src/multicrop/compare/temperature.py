"""A calibration temperature, fitted on labelled images."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LIMITS = (0.01, 100.0)  # images that are all classified correctly would drive the temperature to 0


def fit_temperature(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> float:
    """Fit the temperature that minimises the log loss of softmax(logits / temperature) (Guo et al., ICML 2017).

    Args:
        logits: Class logits.
        labels: Class index per image.

    Returns:
        The temperature, between 0.01 and 100. Predicted classes do not depend on it.
    """

    def log_loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=np.log(LIMITS), method="bounded").x))


def true_probability(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> Float[np.ndarray, " images"]:
    """The probability of the true class of each image, at the temperature that is fitted on these images.

    Args:
        logits: Class logits.
        labels: Class index per image.

    Returns:
        Probabilities.
    """
    return np.exp(log_softmax(logits / fit_temperature(logits, labels), axis=1)[np.arange(len(labels)), labels])
