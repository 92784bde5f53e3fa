"""Orders of a stream of test images: shuffled, class by class, domain by domain, correlated in time, few classes per batch."""

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Len

from multicrop.config.ranges import Count, OneOf
from multicrop.features import FeatureBank

ORDERS = ("shuffled", "sorted_by_class", "by_domain", "correlated", "separate", "few_classes")
Order = Annotated[str, OneOf(ORDERS)]
ClassRange = Annotated[Sequence[Count], Len(2, 2)]


def in_order(
    bank: FeatureBank,
    *,
    order: str,
    order_seed: int,
    gamma: float = 0.1,
    images_per_batch: int = 128,
    classes_per_batch: Sequence[int] = (2, 10),
) -> list[int]:
    """The rows of a bank in the order of a stream, each once.

    Args:
        bank: The feature bank.
        order: ``"shuffled"``; ``"sorted_by_class"`` or ``"by_domain"`` (domains in an order drawn from the seed), shuffled within;
            ``"correlated"``, ``"separate"`` and ``"few_classes"``: see the functions of these names.
        order_seed: Draws the order.
        gamma: Concentration of ``"correlated"``, above 0.
        images_per_batch: Images of a batch, from which ``"correlated"`` counts its slots and ``"few_classes"`` makes its batches.
        classes_per_batch: Fewest and most classes of a batch of ``"few_classes"``.

    Raises:
        ValueError: For another order, for ``"by_domain"`` where the images have no domains, and for a range of classes that is empty.
    """
    if order not in ORDERS:
        raise ValueError(f"task.order is one of {', '.join(ORDERS)}, got {order!r}")
    labels = np.asarray(bank.labels)
    draw = np.random.default_rng(order_seed)
    drawn: dict[str, Callable[[], list[int]]] = {
        "correlated": lambda: correlated(labels, draw, gamma=gamma, images_per_batch=images_per_batch),
        "separate": lambda: separate(labels, draw),
        "few_classes": lambda: few_classes(labels, draw, images_per_batch=images_per_batch, classes_per_batch=classes_per_batch),
    }
    return drawn[order]() if order in drawn else _shuffled(bank, order=order, order_seed=order_seed)


def correlated(labels: np.ndarray, draw: np.random.Generator, *, gamma: float, images_per_batch: int) -> list[int]:
    """Order images so that those of a class come close together (the streams of StatA, CVPR 2025).

    Each class is cut, in the order of the data set, into runs whose shares are drawn from Dirichlet(gamma, ..., gamma) over S =
    min(floor(images / images_per_batch), classes) slots; slot k holds the k-th runs of all classes, shuffled. gamma 0.1, 0.01 and 0.001 are
    the authors' low, medium and high correlation. They draw from a generator without a seed and drop the last incomplete batch; here the
    seed decides, and every image comes once.

    Args:
        labels: Class of each image, in the order of the data set.
        draw: Source of randomness.
        gamma: Concentration, above 0.
        images_per_batch: Images of a batch.

    Returns:
        Positions in `labels`.
    """
    classes = np.unique(labels)
    n_slots = max(1, min(len(labels) // images_per_batch, len(classes)))
    slots: list[list[np.ndarray]] = [[] for _ in range(n_slots)]
    for label in classes:
        members = np.flatnonzero(labels == label)
        shares = draw.dirichlet(np.full(n_slots, gamma))
        cuts = np.floor(len(members) * shares.cumsum()[:-1]).astype(int)
        for slot, run in zip(slots, np.split(members, cuts), strict=True):
            slot.append(run)
    return [row for slot in slots for row in draw.permutation(np.concatenate(slot)).tolist()]


def separate(labels: np.ndarray, draw: np.random.Generator) -> list[int]:
    """Order images class after class, classes in a random order and shuffled within (StatA's streams with gamma -1)."""
    classes = draw.permutation(np.unique(labels))
    return [row for label in classes for row in draw.permutation(np.flatnonzero(labels == label)).tolist()]


def few_classes(labels: np.ndarray, draw: np.random.Generator, *, images_per_batch: int, classes_per_batch: Sequence[int]) -> list[int]:
    """Order images so that each batch has few classes (after StatA, CVPR 2025).

    For each batch a number of classes is drawn, then so many classes that have images left, then the images, without replacement, from all
    of these classes. Where they have fewer images than a batch, classes are added one by one. StatA draws 1,000 independent batches, in
    which an image can recur and which may be smaller; here every image comes once, so that the last batches have more classes.

    Args:
        labels: Class of each image.
        draw: Source of randomness.
        images_per_batch: Images of a batch.
        classes_per_batch: Fewest and most classes of a batch.

    Returns:
        Positions in `labels`.

    Raises:
        ValueError: If the range is empty.
    """
    fewest, most = classes_per_batch
    if not 1 <= fewest <= most:
        raise ValueError(f"task.classes_per_batch is a range such as [2,10], got {list(classes_per_batch)}")
    left = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    rows: list[int] = []
    while left:
        wanted = int(draw.integers(fewest, most, endpoint=True))
        among = draw.permutation(list(left))
        sizes = np.cumsum([len(left[label]) for label in among])
        needed = int(np.searchsorted(sizes, images_per_batch)) + 1
        among = among[: max(wanted, needed)]
        chosen = draw.permutation(np.concatenate([left[label] for label in among]))[:images_per_batch]
        rows += chosen.tolist()
        left |= {label: np.setdiff1d(left[label], chosen) for label in among}
        left = {label: rest for label, rest in left.items() if len(rest)}
    return rows


def _shuffled(bank: FeatureBank, *, order: str, order_seed: int) -> list[int]:
    """A random order, by class or by domain where the order asks for it."""
    images, labels, positions = bank.images, bank.labels, bank.positions
    generator = torch.Generator().manual_seed(order_seed)
    rows = torch.randperm(len(positions), generator=generator).tolist()
    if order == "sorted_by_class":
        rows.sort(key=lambda row: labels[row])
    if order == "by_domain":
        if not images.domains:
            raise ValueError(
                f"task.order=by_domain needs images with domains, and {images.name} has none: use dataset=emoji, or another order"
            )
        domains, names = images.domains, sorted(set(images.domains))
        rank = dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True))
        rows.sort(key=lambda row: rank[domains[positions[row]]])
    return rows
