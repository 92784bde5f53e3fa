"""Few-shot splits: drawn (balanced, nested, keyed by seed and class), or read from a file; never unpickled."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.published_splits import VALIDATION_SHOTS, jsonl_pair
from multicrop.files import content_hash
from multicrop.files.reading import json_of

log = logging.getLogger(__name__)
PICKLES = {".pkl", ".pickle", ".pt", ".pth"}
FORMAT = '{"train": [image id, ...], "val": [image id, ...]}'


def few_shot_split(dataset: Dataset, *, shots: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Draw a few-shot split, balanced over the classes and nested in `shots`.

    The support of a class is the head of one permutation keyed by (seed, class); its validation images are the tail, at most
    min(shots, 4). A class with too few images gives fewer of both and keeps one for validation.

    Args:
        dataset: The data set; support images come from its training pool, and validation images too if it has no validation split.
        shots: Number of support images per class.
        seed: Seed of the permutations.

    Returns:
        Support and validation images.

    Raises:
        ValueError: If `shots` is below 1, or a class has fewer than two images (one, if the data set has a validation split).
    """
    if shots < 1:
        raise ValueError(f"task.shots is {shots}; few-shot needs one image per class or more")
    labels, support, validation = np.asarray(dataset.train.labels), [], []
    own_validation = len(dataset.validation) > 0
    for label, name in enumerate(dataset.class_names):
        members = np.flatnonzero(labels == label)
        if len(members) < (1 if own_validation else 2):
            raise ValueError(
                f"few-shot needs {'one image' if own_validation else 'two images'} per class to train and validate; "
                f"class {name!r} has {len(members)} in {dataset.train.name}. Add images or leave the class out"
            )
        key = int(content_hash(seed, name)[:15], 16)
        order = np.random.default_rng(key).permutation(members)
        held_back = 0 if own_validation else min(shots, VALIDATION_SHOTS, max(1, len(order) - shots))
        support += order[: min(shots, len(order) - held_back)].tolist()
        validation += order[len(order) - held_back :].tolist() if held_back else []
    if own_validation:
        return dataset.train.subset(support), first_per_class(dataset.validation, min(shots, VALIDATION_SHOTS))
    return dataset.train.subset(support), dataset.train.subset(validation)


def first_per_class(images: LabelledImages, count: int) -> LabelledImages:
    """Select the first `count` images of every class.

    Args:
        images: Labelled images.
        count: Number of images per class.

    Returns:
        The selected images in their order.
    """
    seen: dict[int, int] = {}
    kept = []
    for index, label in enumerate(images.labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            kept.append(index)
    return images.subset(kept)


def few_shot_from_file(dataset: Dataset, file: str) -> tuple[LabelledImages, LabelledImages]:
    """Read a few-shot split from a file.

    The file is JSON, {"train": [...], "val": [...]}, such as the `splits.json` of a record, or the training file of a pair of 2SFS
    (``shot_16-seed_1_train.jsonl``, with ``..._val.jsonl`` beside it). An entry is an image id, CoOp's [path, label, class name], or a path
    whose last parts are an id. 2SFS draws classes of few images with repetition; such images count as often as they are named, with a
    warning. Without its validation file (ImageNet) the first images of each class that are left validate.

    Args:
        dataset: The data set whose images the file names: "train" names images of the training pool, "val" validation images or else
            images of the training pool.
        file: The file. Pickles are not read.

    Returns:
        Support and validation images.

    Raises:
        ValueError: If the file is a pickle or not of this form, names images that do not exist or (in JSON) one image twice, gives an image
            another label, or has no training image for a class.
    """
    path = Path(file).expanduser()
    lines = path.suffix == ".jsonl"
    table = jsonl_pair(path) if lines else _read_split(path)
    support = _picked(table["train"], [dataset.train], file, repeats=lines)
    validation = _picked(table["val"], [dataset.validation, dataset.train], file) if table["val"] else _left(dataset, support)
    if validation.name == support.name and (both := sorted(set(support.ids) & set(validation.ids))):
        raise ValueError(f"{file} names {len(both)} images both for training and for validation: {both[0]}, ...; name each once")
    if empty := [name for label, name in enumerate(dataset.class_names) if label not in set(support.labels)]:
        raise ValueError(
            f"{file} has no training image for {len(empty)} classes: {', '.join(empty[:3])}; add some, or leave the classes out"
        )
    return support, validation


def _read_split(path: Path) -> dict[str, list]:
    """The two lists of the file; raises ValueError if it is not of the form FORMAT."""
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"task.few_shot_file={path} is a pickle, and reading a pickle runs whatever code is inside, so it is not read. Turn it into "
            f"JSON where running it is safe (a container without network and without your files): {FORMAT}; "
            "or draw splits here with task.shots and seed"
        )
    try:
        table = json_of(path)
    except ValueError as error:
        raise ValueError(f"task.few_shot_file={path} cannot be read as JSON (it {error}); expected {FORMAT}") from error
    if not isinstance(table, dict) or not all(isinstance(table.get(part), list) and table[part] for part in ("train", "val")):
        raise ValueError(f"task.few_shot_file={path} should hold two lists that are not empty; expected {FORMAT}")
    return table


def _left(dataset: Dataset, support: LabelledImages) -> LabelledImages:
    """The first validation images of each class, at most `VALIDATION_SHOTS`, or training images outside the support."""
    pool, taken = dataset.validation if len(dataset.validation) else dataset.train, set(support.ids)
    return first_per_class(pool.subset([i for i, image_id in enumerate(pool.ids) if image_id not in taken]), VALIDATION_SHOTS)


def _picked(entries: Sequence[object], pools: Sequence[LabelledImages], file: str, *, repeats: bool = False) -> LabelledImages:
    """The images that the entries name, from the first pool that has all of them."""
    wanted = [(entry[0], entry[1]) if isinstance(entry, list) and len(entry) > 1 else (entry, None) for entry in entries]
    missing: list[str] = []
    for pool in pools:
        position = {image_id: i for i, image_id in enumerate(pool.ids)}
        found = [_position(str(name), position) for name, _ in wanted]
        missing = [str(name) for (name, _), at in zip(wanted, found, strict=True) if at is None]
        if None not in found:
            return _checked(pool, [at for at in found if at is not None], [label for _, label in wanted], file, repeats=repeats)
    raise ValueError(
        f"{file} names {len(missing)} images that are not in {pools[-1].name}: {', '.join(missing[:3])}; its ids look like "
        f"{', '.join(pools[-1].ids[:2]) or 'nothing (it is empty)'}. Write the ids that way"
    )


def _position(name: str, position: dict[str, int]) -> int | None:
    """The position of the image whose id is the name, or the name without its first folders."""
    parts = name.split("/")
    return next((position[tail] for cut in range(len(parts)) if (tail := "/".join(parts[cut:])) in position), None)


def _checked(pool: LabelledImages, positions: list[int], labels: list[object], file: str, *, repeats: bool) -> LabelledImages:
    repeated = len(positions) - len(set(positions))
    if repeated and repeats:
        log.warning("%s names %s images again, as its draw repeats those of small classes; they count as often as named", file, repeated)
    elif repeated:
        twice = next(p for p in positions if positions.count(p) > 1)
        raise ValueError(f"{file} names {pool.ids[twice]} more than once; name each image once")
    for position, label in zip(positions, labels, strict=True):
        if label is not None and label != pool.labels[position]:
            raise ValueError(
                f"{file} gives {pool.ids[position]} the label {label}, the data set says {pool.labels[position]}; "
                "the file belongs to another copy or another order of the classes"
            )
    return pool.subset(positions)
