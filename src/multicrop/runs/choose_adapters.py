"""Few-shot adapters in the search of task=choose: an image is judged by an adapter that was fitted without the image's fold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.adapters.base import Examples
from multicrop.aggregators import Logits
from multicrop.compare.resampling import cluster_numbers
from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.few_shot import few_shot_split
from multicrop.features import FeatureBank
from multicrop.runs.few_shot import examples_of
from multicrop.runs.session import Session


@dataclass(frozen=True)
class Fold:
    """Images that are judged, by their positions, and what their adapter learns from: the split of a run, drawn without these images."""

    judged: list[int]
    support: LabelledImages
    validation: LabelledImages


@dataclass(frozen=True)
class Known:
    """The features of one setting: the judged images, and those that adapters learn from."""

    judged: Examples
    positions: list[int]
    support: Examples
    support_rows: dict[str, int]
    validation: Examples
    validation_rows: dict[str, int]


class CrossFit:
    """Judges adapters on labelled images by cross-fitting.

    Every fold of the images has an adapter of its own. Its support and validation images are drawn as those of a few-shot run with the same
    shots and seed, from the data set without the images of the fold. Images of one cluster are in one fold where each class has several
    clusters.

    Args:
        dataset: The data set.
        images: The labelled images: validation images of the data set or, where it has none, training images; they may be corrupted.
        shots: Support images per class.
        folds: Number of folds.
        seed: Seed of folds and draws.

    Raises:
        ValueError: If a class has too few images.
    """

    def __init__(self, dataset: Dataset, images: LabelledImages, *, shots: int, folds: int, seed: int) -> None:
        self.images, own = images, "validation" if len(dataset.validation) else "train"
        self.folds: list[Fold] = []
        number = fold_numbers(images.labels, images.clusters, folds, seed)
        for fold in range(int(number.max()) + 1):
            judged: list[int] = np.flatnonzero(number == fold).tolist()
            rest = _without(getattr(dataset, own), {images.ids[i] for i in judged})
            self.folds.append(Fold(judged, *few_shot_split(replace(dataset, **{own: rest}), shots=shots, seed=seed)))
        self.support = _union(dataset.train, (fold.support for fold in self.folds))
        self.validation = _union(getattr(dataset, own), (fold.validation for fold in self.folds))

    @property
    def to_encode(self) -> int:
        """Number of images that are encoded beside the judged ones."""
        further = {part.fingerprint: len(part) for part in (self.support, self.validation)}
        return sum(count for fingerprint, count in further.items() if fingerprint != self.images.fingerprint)

    @torch.no_grad()
    def known(self, session: Session) -> Known:
        """The features and zero-shot logits that adapters of a setting read; the session is that of the setting."""
        banks = [session.bank(images) for images in (self.images, self.support, self.validation)]
        judged, support, validation = (examples_of(session.scorer, *bank.tensors()) for bank in banks)
        return Known(judged, banks[0].positions, support, _rows(banks[1]), validation, _rows(banks[2]))

    def logits(self, session: Session, known: Known) -> Logits:
        """Logits of the readable judged images, each from the adapter that was fitted without its fold.

        Args:
            session: That of the setting; its configuration has the adapter.
            known: What `known` returned for the same crops, aggregator and fusion weight.

        Returns:
            Logits in the order of the bank of the images, shape (images, classes).

        Raises:
            ValueError: If the adapter cannot be fitted, or changes the encoder.
        """
        logits, row_of = torch.zeros_like(known.judged.logits), {position: row for row, position in enumerate(known.positions)}
        part = session.settings.part("adapter")
        for fold in self.folds:
            adapter = session.inject(part.make())
            if adapter.reads_other_features:
                raise ValueError(f"{type(adapter).__name__} changes the encoder, and task=choose fits adapters of features alone")
            support = _chosen(known.support, known.support_rows, fold.support.ids)
            adapter.fit(support, _chosen(known.validation, known.validation_rows, fold.validation.ids))
            rows = torch.tensor([row_of[i] for i in fold.judged if i in row_of], dtype=torch.long)
            with torch.no_grad():
                logits[rows] = adapter(known.judged.views[rows], known.judged.logits[rows])
        return logits


def fold_numbers(labels: Sequence[int], clusters: Sequence[str] | None, folds: int, seed: int) -> np.ndarray:
    """The fold of each image, balanced over the classes.

    Args:
        labels: Class per image.
        clusters: Cluster per image, or None; a cluster is in one fold, unless a class has one cluster alone, which would leave nothing to
            learn that class from.
        folds: Number of folds.
        seed: Seed of the order.

    Returns:
        Number of the fold per image, shape (images,).
    """
    classes, rng = np.asarray(labels), np.random.default_rng(seed)
    units = cluster_numbers(clusters, len(classes))
    if units is None or min(len(set(units[classes == label])) for label in set(labels)) < 2:
        units = np.arange(len(classes))
    first = np.unique(units, return_index=True)[1]
    order = rng.permutation(len(first))
    order = order[np.argsort(classes[first][order], kind="stable")]  # a class's units are neighbours, so that they are dealt to all folds
    number = np.empty(len(first), dtype=int)
    number[order] = np.arange(len(first)) % folds
    return number[units]


def _without(images: LabelledImages, ids: set[str]) -> LabelledImages:
    return images.subset([position for position, image_id in enumerate(images.ids) if image_id not in ids])


def _union(images: LabelledImages, parts: Iterable[LabelledImages]) -> LabelledImages:
    """The images of all parts; the whole set where these are most of it, so that its bank also serves the run that follows."""
    wanted = list(dict.fromkeys(image_id for part in parts for image_id in part.ids))
    if 2 * len(wanted) >= len(images):
        return images
    position = {image_id: number for number, image_id in enumerate(images.ids)}
    return images.subset([position[image_id] for image_id in wanted])


def _rows(bank: FeatureBank) -> dict[str, int]:
    return {bank.images.ids[position]: row for row, position in enumerate(bank.positions)}


def _chosen(examples: Examples, row_of: dict[str, int], ids: Sequence[str]) -> Examples:
    """The examples with these ids, in their order, less those that cannot be read."""
    rows = torch.tensor([row_of[image_id] for image_id in ids if image_id in row_of], dtype=torch.long)
    views: Float[Tensor, "n views dim"] = examples.views[rows]
    return Examples(views, examples.logits[rows], examples.labels[rows])
