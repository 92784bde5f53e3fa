"""Data sets with some of their classes: the base and the new half of the base-to-new protocol."""

from collections.abc import Sequence
from dataclasses import replace

from multicrop.data.base import Dataset, LabelledImages

HALVES = ("base", "new")


def with_half(dataset: Dataset, half: str) -> Dataset:
    """Select half of the classes: of n classes that have training images the first ceil(n / 2) are base, the others new.

    Source: Zhou et al., CVPR 2022 (CoCoOp). Labels count from 0 again in each half. A few-shot draw is keyed by class, so that the support
    of a base class is that of a run on all classes.

    Args:
        dataset: The data set.
        half: ``"base"`` or ``"new"``.

    Returns:
        The data set of the half, named ``NAME-base`` or ``NAME-new``.

    Raises:
        ValueError: If `half` is neither, the training images are of fewer than two classes, or the test images are a stream.
    """
    if half not in HALVES:
        raise ValueError(f"classes is all, {' or '.join(HALVES)}, got {half!r}")
    trained = sorted(set(dataset.train.labels))
    if len(trained) < 2:
        raise ValueError(
            f"classes={half} halves the classes that have training images, and {dataset.name} has {len(trained)}; choose a data set with "
            "training images, or set its folder of them (dataset.train=FOLDER)"
        )
    middle = -(-len(trained) // 2)
    return with_classes(dataset, trained[:middle] if half == "base" else trained[middle:], f"{dataset.name}-{half}")


def with_classes(dataset: Dataset, classes: Sequence[int], name: str) -> Dataset:
    """Select classes.

    Args:
        dataset: The data set.
        classes: Positions of the classes, in the order of their new labels.
        name: Name of the result.

    Returns:
        The images, names, keys and descriptions of these classes.

    Raises:
        ValueError: If the test images are a stream.
    """
    if dataset.test.indexed is False:
        raise ValueError(
            f"the test images of {dataset.name} are a stream, which has all classes; choose a data set that is read by position"
        )
    names = [dataset.class_names[label] for label in classes]
    label_of = {label: position for position, label in enumerate(classes)}
    train, validation, test = (_relabelled(images, label_of) for images in (dataset.train, dataset.validation, dataset.test))
    described = {title: texts for title, texts in dataset.descriptions.items() if title in names}
    keys = [dataset.class_keys[label] for label in classes] if dataset.class_keys else None
    return Dataset(name, names, described, train, validation, test, keys)


def _relabelled(images: LabelledImages, label_of: dict[int, int]) -> LabelledImages:
    """The images whose label has a new one."""
    chosen = images.subset([i for i, label in enumerate(images.labels) if label in label_of])
    return replace(chosen, labels=[label_of[label] for label in chosen.labels])
