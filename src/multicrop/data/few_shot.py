"""Few-shot splits: drawn (balanced, nested, keyed by seed and class), or read from a JSON file; never unpickled."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multicrop.data.base import Dataset, LabelledImages
from multicrop.files import content_hash

VALIDATION_SHOTS = 4  # at most this many validation images a class in a few-shot split
PICKLES = {".pkl", ".pickle", ".pt", ".pth"}
FORMAT = '{"train": [image id, ...], "val": [image id, ...]}'


def few_shot_split(dataset: Dataset, *, shots: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """(support, validation), balanced, nested in `shots`, from the training pool (and the validation images, where there are any).

    The support of a class is the head of one permutation keyed by (seed, class); its validation images are the tail, at most
    min(shots, 4). A class with too few images gives fewer of both and keeps one for validation. Raises ValueError when a class has
    fewer than two images and the data set brings no validation images.
    """
    if shots < 1:
        raise ValueError(f"task.shots is {shots}; few-shot needs one image a class or more")
    labels, support, validation = np.asarray(dataset.train.labels), [], []
    own_validation = len(dataset.validation) > 0
    for label, name in enumerate(dataset.class_names):
        members = np.flatnonzero(labels == label)
        if len(members) < (1 if own_validation else 2):
            raise ValueError(
                f"few-shot needs {'one image' if own_validation else 'two images'} a class to train and validate; "
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
    """The first `count` images of every class, in order."""
    seen: dict[int, int] = {}
    kept = []
    for index, label in enumerate(images.labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= count:
            kept.append(index)
    return images.subset(kept)


def few_shot_from_file(dataset: Dataset, file: str) -> tuple[LabelledImages, LabelledImages]:
    """(support, validation) as a JSON file names them: {"train": [...], "val": [...]}, each entry an image id.

    The `splits.json` of a record is such a file. An entry may also be CoOp's [path, label, class name], or a path whose last parts are
    an id. "train" names images of the training pool; "val" names validation images, or else images of the training pool. Raises
    ValueError for pickles, for images that are not there, for one that is named twice, and for a label that is not the image's own.
    """
    table = _read_split(Path(file).expanduser())
    support = _picked(table["train"], [dataset.train], file)
    validation = _picked(table["val"], [dataset.validation, dataset.train], file)
    if validation.name == support.name and (both := sorted(set(support.ids) & set(validation.ids))):
        raise ValueError(f"{file} names {len(both)} images both for training and for validation: {both[0]}, ...; name each once")
    if empty := [name for label, name in enumerate(dataset.class_names) if label not in set(support.labels)]:
        raise ValueError(
            f"{file} has no training image for {len(empty)} classes: {', '.join(empty[:3])}; add some, or leave the classes out"
        )
    return support, validation


def _read_split(path: Path) -> dict[str, list]:
    """The two lists of the file; raises ValueError with what is wanted when it is something else."""
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"task.few_shot_file={path} is a pickle, and reading a pickle runs whatever code is inside, so it is not read. Turn it into "
            f"JSON where running it can do no harm (a container without network and without your files): {FORMAT}; "
            "or draw splits here with task.shots and seed"
        )
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"task.few_shot_file={path} cannot be read as JSON ({error}); it wants {FORMAT}") from error
    if not isinstance(table, dict) or not all(isinstance(table.get(part), list) and table[part] for part in ("train", "val")):
        raise ValueError(f"task.few_shot_file={path} should hold two lists that are not empty; it wants {FORMAT}")
    return table


def _picked(entries: Sequence[object], pools: Sequence[LabelledImages], file: str) -> LabelledImages:
    """The images that the entries name, from the first pool that has all of them."""
    wanted = [(entry[0], entry[1]) if isinstance(entry, list) and len(entry) > 1 else (entry, None) for entry in entries]
    missing: list[str] = []
    for pool in pools:
        position = {image_id: i for i, image_id in enumerate(pool.ids)}
        found = [_position(str(name), position) for name, _ in wanted]
        missing = [str(name) for (name, _), at in zip(wanted, found, strict=True) if at is None]
        if None not in found:
            return _checked(pool, [at for at in found if at is not None], [label for _, label in wanted], file)
    raise ValueError(
        f"{file} names {len(missing)} images that are not in {pools[-1].name}: {', '.join(missing[:3])}; its ids look like "
        f"{', '.join(pools[-1].ids[:2]) or 'nothing (it is empty)'}. Write the ids that way"
    )


def _position(name: str, position: dict[str, int]) -> int | None:
    """Where the image is whose id is the name, or the name less its first folders."""
    parts = name.split("/")
    return next((position[tail] for cut in range(len(parts)) if (tail := "/".join(parts[cut:])) in position), None)


def _checked(pool: LabelledImages, positions: list[int], labels: list[object], file: str) -> LabelledImages:
    if len(set(positions)) < len(positions):
        twice = next(p for p in positions if positions.count(p) > 1)
        raise ValueError(f"{file} names {pool.ids[twice]} more than once; name each image once")
    for position, label in zip(positions, labels, strict=True):
        if label is not None and label != pool.labels[position]:
            raise ValueError(
                f"{file} gives {pool.ids[position]} the label {label}, the data set says {pool.labels[position]}; "
                "the file belongs to another copy or another order of the classes"
            )
    return pool.subset(positions)
