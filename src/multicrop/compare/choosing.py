"""The choice of one setting among many on labelled images: a rule that resists noise, and how far the naive best overstates itself.

Settings are rows of a table of scores per image, in order of preference: the cheaper and simpler first. Row 0 is the baseline. Where images
come in clusters, clusters take the place of images in standard errors, folds and resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from multicrop.compare.resampling import cluster_numbers, percentiles

ROUNDING = 1e-9
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """Which setting the rule chooses, and what can be expected of it.

    Args:
        chosen: Row of the chosen setting; 0 is the baseline.
        candidate: Row that the one-standard-error rule picks on all images, before the check by cross-fitting.
        naive: Row of the highest accuracy.
        gain: Cross-fitted gain of the rule in accuracy: each image is classified by settings that were picked without it.
        apparent: Accuracy of the naive best on the images that it was picked on.
        corrected: What the naive best has on other images, by the bootstrap.
        shares: Share of the resamples in which the rule picks each setting, shape (settings,).
    """

    chosen: int
    candidate: int
    naive: int
    gain: Estimate
    apparent: float
    corrected: Estimate
    shares: np.ndarray

    @property
    def optimism(self) -> Estimate:
        """Accuracy that the naive best owes to having been picked on the same images."""
        return Estimate(self.apparent - self.corrected.value, self.apparent - self.corrected.high, self.apparent - self.corrected.low)


@dataclass(frozen=True)
class _Table:
    """Sum of the scores per setting and cluster, and images per cluster."""

    sums: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, clusters: Sequence[str] | None) -> "_Table":
        scores = np.asarray(scores, dtype=float)
        if scores.ndim != 2 or not scores.shape[0] or scores.shape[1] < 2:
            raise ValueError(f"a choice needs one setting and two images or more; got settings x images = {scores.shape}")
        numbers = cluster_numbers(clusters, scores.shape[1])
        if numbers is None:
            return cls(scores, np.ones(scores.shape[1]))
        members = np.eye(int(numbers.max()) + 1)[numbers]
        return cls(scores @ members, members.sum(0))

    def means(self, weights: np.ndarray) -> np.ndarray:
        """Mean score per setting where cluster g counts weights[..., g] times, shape (..., settings)."""
        return weights @ self.sums.T / (weights @ self.sizes)[..., None]


def choose(
    correct: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    clusters: Sequence[str] | None = None,
    standard_errors: float = 1.0,
    repeats: int = 20,
    folds: int = 5,
    resamples: int = 500,
    seed: int = 0,
) -> Choice:
    """Choose a setting by the one-standard-error rule, and keep it only if cross-fitting confirms its gain over the baseline.

    The rule takes the first setting, in order of preference, whose mean score is at most `standard_errors` standard errors of their paired
    difference below the highest (after Breiman et al. 1984, section 3.4.3, who take the standard error of the highest). Repeated
    cross-fitting applies the rule to all folds but one and scores its pick on that one. Where the mean gain of these picks over the
    baseline is not above `standard_errors` of its standard errors, the baseline is chosen. The probability of the true class is a score
    that still tells settings apart where nearly all images are right.

    Args:
        correct: Booleans, shape (settings, images); rows in order of preference, row 0 the baseline.
        scores: What the rule compares, higher is better, shape (settings, images); None: `correct`.
        clusters: Cluster per image, ``""`` for an image that is in none; None: images are independent.
        standard_errors: Number of standard errors of both steps.
        repeats: Divisions into folds.
        folds: Folds per division.
        resamples: Bootstrap resamples.
        seed: Seed of folds and resamples.

    Returns:
        The choice.

    Raises:
        ValueError: If there is no setting, or fewer than two images.
    """
    plain, rng = _Table.of(correct, clusters), np.random.default_rng(seed)
    table = plain if scores is None else _Table.of(scores, clusters)
    count = len(table.sizes)
    ones, picks = np.ones(count), _picks(table, rng, standard_errors, repeats, min(folds, count))
    scored, error = _gain(table, picks)
    gain, reach = _gain(plain, picks)
    reach *= float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    candidate = _pick(table, ones, standard_errors)
    weights = rng.multinomial(count, ones / count, resamples)
    drawn = [_pick(table, row, standard_errors) for row in weights]
    accuracies = plain.means(ones)
    return Choice(
        chosen=candidate if scored > standard_errors * error + ROUNDING else 0,
        candidate=candidate,
        naive=int(accuracies.argmax()),
        gain=Estimate(gain, gain - reach, gain + reach),
        apparent=float(accuracies.max()),
        corrected=_out_of_bag(plain, weights),
        shares=np.bincount(drawn, minlength=len(accuracies)) / resamples,
    )


def naive_best(correct: np.ndarray, *, clusters: Sequence[str] | None = None, resamples: int = 500, seed: int = 0) -> Estimate:
    """Estimate the accuracy on other images of the setting with the highest accuracy on these.

    Bootstrap bias corrected cross-validation (Tsamardinos, Greasidou & Borboudakis 2018, https://doi.org/10.1007/s10994-018-5714-4): in
    each resample the best setting is scored on the images that were not drawn.

    Args:
        correct: Booleans, shape (settings, images).
        clusters: See `choose`.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        The mean over resamples and its percentile interval.
    """
    table = _Table.of(correct, clusters)
    count = len(table.sizes)
    return _out_of_bag(table, np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples))


def _out_of_bag(table: _Table, weights: np.ndarray) -> Estimate:
    best, left_out = table.means(weights).argmax(1), weights == 0
    known = left_out.any(1)
    scored = (left_out * table.sums[best]).sum(1)[known] / (left_out @ table.sizes)[known]
    if not len(scored):
        raise ValueError(f"no resample of {len(table.sizes)} clusters leaves one out; use more resamples or more labelled images")
    return Estimate(float(scored.mean()), *percentiles(scored, CONFIDENCE))


def _pick(table: _Table, weights: np.ndarray, standard_errors: float) -> int:
    """The first setting within so many standard errors of the best, where cluster g counts weights[g] times."""
    drawn = np.flatnonzero(weights)
    sums, sizes, weights = table.sums[:, drawn], table.sizes[drawn], weights[drawn]
    accuracy = sums @ weights / (sizes @ weights)
    gaps = accuracy.max() - accuracy
    residuals = sums[accuracy.argmax()] - sums - gaps[:, None] * sizes
    count = weights.sum()
    variance = residuals**2 @ weights * count / max(count - 1, 1)
    return int(np.argmax(gaps <= standard_errors * np.sqrt(variance) / (sizes @ weights) + ROUNDING))


def _picks(table: _Table, rng: np.random.Generator, standard_errors: float, repeats: int, folds: int) -> np.ndarray:
    """The setting that is picked without each cluster, shape (repeats, clusters)."""
    picks = np.zeros((repeats, len(table.sizes)), dtype=int)
    for row in picks:
        fold = rng.permutation(len(table.sizes)) % folds
        for number in range(folds):
            out = fold == number
            row[out] = _pick(table, (~out).astype(float), standard_errors)
    return picks


def _gain(table: _Table, picks: np.ndarray) -> tuple[float, float]:
    """Mean score of the picks above the baseline, and its standard error over clusters."""
    sizes, count = table.sizes, len(table.sizes)
    gains = (table.sums[picks, np.arange(count)] - table.sums[0]).mean(0)
    mean = gains.sum() / sizes.sum()
    return float(mean), float(np.sqrt(((gains - mean * sizes) ** 2).sum() * count / (count - 1)) / sizes.sum())
