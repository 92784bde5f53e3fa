"""Few-shot splits as others publish them: the lines of 2SFS's files, and CoOp's draw, which its code repeats for each seed."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from multicrop.data.base import Dataset, LabelledImages
from multicrop.files.reading import text_of

VALIDATION_SHOTS = 4  # at most this many validation images per class
LINE = '{"_impath": path, "_label": class position, "_classname": class name}'
Entry = list[str | int]


def jsonl_pair(path: Path) -> dict[str, list[Entry]]:
    """Read the two files of a split of 2SFS (Farina et al., CVPR 2025), ``..._train.jsonl`` and ``..._val.jsonl``.

    Args:
        path: The file of the training images; the other one lies beside it. There is none for ImageNet.

    Returns:
        Rows [path, label, class name] under ``"train"`` and ``"val"``; the latter may be empty.

    Raises:
        ValueError: If the name ends otherwise, or a line is not of this form.
    """
    end = "_train.jsonl"
    if not path.name.endswith(end):
        raise ValueError(f"task.few_shot_file={path} is one of two files; pass the one whose name ends with {end}")
    other = path.with_name(path.name.removesuffix(end) + "_val.jsonl")
    return {"train": _lines(path), "val": _lines(other) if other.is_file() else []}


def _lines(path: Path) -> list[Entry]:
    try:
        text = text_of(path)
    except ValueError as error:
        raise ValueError(f"task.few_shot_file={path} cannot be read (it {error}); expected lines of {LINE}") from error
    return [_entry(line, f"line {number} of {path}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _entry(line: str, where: str) -> Entry:
    """Path, label and class name of a line; raises ValueError if it is not of the form LINE."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}); expected {LINE}") from error
    found = [row.get(key) for key in ("_impath", "_label", "_classname")] if isinstance(row, dict) else []
    if [type(value) for value in found] != [str, int, str]:
        raise ValueError(f"{where} is {line[:80]!r}; expected {LINE}")
    return found


def coop_split(dataset: Dataset, *, shots: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Draw the few-shot split that CoOp's code (Zhou et al., IJCV 2022, on Dassl) draws for this seed from the same list of images.

    Python's generator is seeded once. Classes come in the order of their first image; each gives a sample of `shots` training images, all
    that it has where these are fewer. Then the validation split gives min(shots, 4) images per class from the same stream. CoOp keeps what
    it drew as a pickle, which is not needed. Supports of several numbers of shots are not nested.

    Args:
        dataset: The data set, its images in the order of CoOp's list. Without a validation split (ImageNet, where CoOp takes test images)
            validation images are drawn from the training images that are left; that is ours.
        shots: Number of support images per class.
        seed: Seed of the generator.

    Returns:
        Support and validation images.

    Raises:
        ValueError: If `shots` is below 1, a class has no training image, or none is left for validation.
    """
    if shots < 1:
        raise ValueError(f"task.shots is {shots}; few-shot needs one image per class or more")
    generator, few = random.Random(seed), min(shots, VALIDATION_SHOTS)
    support = _drawn(generator, dataset.train.labels, range(len(dataset.train)), shots)
    pool = dataset.validation if len(dataset.validation) else dataset.train
    left = range(len(pool)) if pool is dataset.validation else sorted(set(range(len(pool))) - set(support))
    validation = _drawn(generator, pool.labels, left, few)
    for images, chosen, role in ((dataset.train, support, "train"), (pool, validation, "validate")):
        if lacking := [name for label, name in enumerate(dataset.class_names) if label not in {images.labels[i] for i in chosen}]:
            raise ValueError(
                f"few-shot needs one image per class to {role}; {len(lacking)} classes have none in {images.name}: "
                f"{', '.join(lacking[:3])}. Add images or leave the classes out"
            )
    return dataset.train.subset(support), pool.subset(validation)


def _drawn(generator: random.Random, labels: Sequence[int], positions: Sequence[int], count: int) -> list[int]:
    """A sample of each class, classes in the order of their first position."""
    groups: dict[int, list[int]] = {}
    for position in positions:
        groups.setdefault(labels[position], []).append(position)
    return [chosen for group in groups.values() for chosen in (generator.sample(group, count) if len(group) >= count else group)]
