"""Data sets in the layout of CoOp: images in one folder, and `split_zhou_X.json` with [path, label, class name] rows per split."""

from collections.abc import Mapping
from pathlib import Path

from multicrop.data.base import Dataset, LabelledImages, assemble, file_images
from multicrop.data.classes import ClassList, classes_of
from multicrop.data.sources.clusters import matched_clusters
from multicrop.files.reading import json_of

SPLITS = {"train": "train", "validation": "val", "test": "test"}


def coop(
    *,
    name: str,
    root: str,
    images: str,
    split_file: str,
    classes: str | None,
    source: str,
    class_names: str | None = None,
    aliases: Mapping[str, str] | None = None,
    cluster_pattern: str | None = None,
) -> Dataset:
    """Read the splits of CoOp (Zhou et al., IJCV 2022).

    Labels are those of the file; the class name of each label is matched by name to the class list.

    Args:
        name: Name of the data set.
        root: The folder of the data set.
        images: The folder below `root` that paths are relative to.
        split_file: The JSON file below `root` with the rows of each split.
        classes: A packaged class list that the names are matched to, or None.
        source: Where the data can be downloaded, for messages.
        class_names: A JSON list of class names in any order, or None.
        aliases: {name in the data: name in the list}.
        cluster_pattern: Regular expression on the paths whose first group is the cluster of an image, such as its video; or None.

    Returns:
        The data set; ids are the paths of the file.

    Raises:
        ValueError: If files do not exist, a label has two names, or the labels have gaps.
    """
    base = Path(root).expanduser()
    file = base / split_file
    if not file.is_file():
        raise ValueError(
            f"{name} is not found: {file} does not exist. Get {source}; images go below {base / images}, and {split_file} (the splits of "
            f"CoOp, linked in its DATASETS.md: https://github.com/KaiyangZhou/CoOp) beside them. If they are elsewhere: dataset.root=FOLDER"
        )
    table = _read(file)
    rows = [row for part in table.values() for row in part]
    names = _classes(rows, file, classes, class_names, aliases)
    parts = {split: table[key] for split, key in SPLITS.items()}
    splits = {split: _images(f"{name}/{split}", part, base / images, cluster_pattern) for split, part in parts.items()}
    return assemble(name, names, splits)


def _images(name: str, rows: list[list], base: Path, cluster_pattern: str | None) -> LabelledImages:
    ids = [row[0] for row in rows]
    return file_images(name, ids, [row[1] for row in rows], [base / path for path in ids], matched_clusters(ids, cluster_pattern, name))


def _read(file: Path) -> dict[str, list]:
    """The three lists of rows; raises ValueError if the file is something else."""
    wanted = 'expected {"train": [[path, label, class name], ...], "val": [...], "test": [...]}'
    try:
        table = json_of(file)
    except ValueError as error:
        raise ValueError(f"{file} {error}; {wanted}") from error
    if not isinstance(table, dict) or not all(isinstance(table.get(key), list) for key in SPLITS.values()):
        raise ValueError(f"{file} lacks a split ({', '.join(SPLITS.values())}); {wanted}")
    for key in SPLITS.values():
        for row in table[key]:
            if not (isinstance(row, list) and [type(part) for part in row] == [str, int, str]):
                raise ValueError(f"{file} has the row {row!r} in {key}; {wanted}")
            if Path(row[0]).is_absolute() or ".." in Path(row[0]).parts:
                raise ValueError(f"{file} has the path {row[0]!r} in {key}; paths must lie below the folder of images")
    return table


def _classes(rows: list[list], file: Path, classes: str | None, class_names: str | None, aliases: Mapping[str, str] | None) -> ClassList:
    """The class of each label, from 0 without gaps."""
    said: dict[int, str] = {}
    for _, label, title in rows:
        if said.setdefault(label, title) != title:
            raise ValueError(f"{file} calls label {label} both {said[label]!r} and {title!r}; a label has one name")
    if sorted(said) != list(range(len(said))):
        gap = next(label for label in range(len(said)) if label not in said)
        raise ValueError(f"{file} has the labels {min(said)} to {max(said)} with label {gap} missing; labels count from 0 without gaps")
    found = [said[label] for label in range(len(said))]
    return classes_of(found, what=str(file), classes=classes, class_names=class_names, aliases=aliases)
