"""Bootstrap resamples of images, clusters and runs, and the permutation test over clusters."""

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtrit

AT_ONCE = 4_000_000  # numbers in memory while resampling


def cluster_numbers(clusters: Sequence[str] | None, images: int) -> np.ndarray | None:
    """The number of the cluster of each image; None where clusters change nothing: each image is one, or all images are in one.

    An image with an empty name is a cluster of its own.
    """
    if clusters is None or not any(clusters):
        return None
    if len(clusters) != images:
        raise ValueError(f"a comparison needs the cluster of each image; got {len(clusters)} clusters of {images} images")
    names = np.asarray(clusters)
    numbers, alone = np.unique(names, return_inverse=True)[1], names == ""
    numbers[alone] = images + np.arange(alone.sum())
    found, numbers = np.unique(numbers, return_inverse=True)
    return numbers if 1 < len(found) < images else None


def percentiles(draws: np.ndarray, confidence: float, clusters: int | None = None) -> tuple[float, float]:
    """The percentile interval, expanded where it is over a number of clusters (Hesterberg 2015, section 4.4)."""
    tail = (1 - confidence) / 2
    if clusters is not None:
        tail = float(ndtr(np.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, tail)))
    low, high = np.percentile(draws, [100 * tail, 100 - 100 * tail])
    return float(low), float(high)


def cluster_means(gains: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Mean gain per image in each resample of clusters; equal clusters are drawn as one multinomial count."""
    pairs, counts = np.unique(gains + 1j * sizes, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), resamples)
    return (drawn @ pairs.real) / (drawn @ pairs.imag)


def sign_flips(gains: np.ndarray) -> float:
    """Two-sided p-value of the sum of gains when the sign of each is drawn at random, over all draws.

    The probabilities of the sums are the Fourier transform of prod(cos(gain * t)), which is exact to about 1e-15.
    """
    values, counts = np.unique(np.abs(gains[gains != 0]).astype(int), return_counts=True)
    total = int(values @ counts)
    if total == 0:
        return 1.0
    angles = 2 * np.pi * np.arange(2 * total + 1) / (2 * total + 1)
    product = np.prod([np.cos(value * angles) ** count for value, count in zip(values, counts, strict=True)], axis=0)
    probability = np.fft.fftshift(np.fft.fft(product).real) / len(angles)
    as_far = np.abs(np.arange(-total, total + 1)) >= abs(int(gains.sum()))
    return float(np.clip(probability[as_far].sum(), 2.0 ** (1 - int(counts.sum())), 1.0))


def crossed_means(gains: np.ndarray, rng: np.random.Generator, resamples: int, sizes: np.ndarray | None = None) -> np.ndarray:
    """Mean of ``gains``, shape (runs, images), in each resample of runs and images, or of clusters with these ``sizes``."""
    runs, images = gains.shape
    means = np.empty(resamples)
    step = max(1, AT_ONCE // images)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), count)
        of_images = rng.multinomial(images, np.full(images, 1 / images), count)
        scored = gains.size if sizes is None else runs * (of_images @ sizes)
        means[start : start + count] = np.einsum("bi,bi->b", of_runs @ gains, of_images) / scored
    return means
