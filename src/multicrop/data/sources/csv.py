"""`dataset=csv`: images listed in CSV files with a path and a label per row; one file per split, or one file with a split column."""

import csv
import io
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from multicrop.config.ranges import Character, InnerShare, Seed
from multicrop.data.base import Dataset, LabelledImages, assemble, file_images
from multicrop.data.sources.labels import text_labels
from multicrop.data.sources.splits import SPLITS, divided
from multicrop.files.reading import text_of

Rows = list[tuple[str, str, str]]  # (path, label, cluster)
SPLIT = "split"  # the column of splits where none is named, which a file need not have
CLUSTER = "cluster"  # the column of clusters where none is named


def csv_file(  # noqa: PLR0913 the knobs of conf/dataset/csv.yaml
    *,
    file: str | None,
    train: str | None,
    validation: str | None,
    test: str | None,
    root: str | None,
    path_column: str,
    label_column: str,
    split_column: str | None,
    delimiter: Character,
    test_share: InnerShare,
    split_seed: Seed,
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
    cluster_column: str | None = None,
) -> Dataset:
    """Read one CSV per split, or one CSV with a split column.

    Without any split, `test_share` of each class is for testing. Labels are class names, or numbers from 0 that `class_names` or a
    packaged list in label order names.

    Args:
        file: One CSV for all splits, or None.
        train: The CSV of training images, or None.
        validation: The CSV of validation images, or None.
        test: The CSV of test images; exactly one of `file` and `test` is given.
        root: The folder that paths are relative to; None is the folder of the CSV.
        path_column: Name of the column of paths.
        label_column: Name of the column of labels.
        split_column: Name of the column that says train, val or test (of `file`); None: there is none, as where a file has no column
            ``split``, the default of conf/dataset/csv.yaml.
        delimiter: Character between columns.
        test_share: Share of each class that is for testing where nothing makes a split.
        split_seed: Seed of that split.
        class_names: A JSON list of class names, or None: any order for names, label order for numbers.
        classes: A packaged class list that the names are matched to, or None.
        aliases: {name in the data: name in the list}.
        cluster_column: Name of the column of clusters (patient, video, session), whose images are not independent; None: ``cluster``,
            where there is such a column.

    Returns:
        The data set; ids are the paths as written.

    Raises:
        ValueError: If a file, a column or an image does not exist, a split has another name, or a label is out of range.
    """
    if (file is None) == (test is None):
        raise ValueError(
            "dataset=csv needs dataset.file=CSV, or dataset.test=CSV (with dataset.train and dataset.validation if there are any)"
        )
    columns = (path_column, label_column, *([cluster_column] if cluster_column else []))
    if file is not None:
        rows = _by_split(_table(file, columns, delimiter), file, columns, split_column, test_share, split_seed)
        tables = {split: (file, part) for split, part in rows.items()}
    else:
        given = {"train": train, "validation": validation, "test": test}
        tables = {split: (path, _entries(_table(path, columns, delimiter), columns)) for split, path in given.items() if path}
    name = Path(str(file or test)).stem
    texts = (label for _, part in tables.values() for _, label, _ in part)
    names, label_of = text_labels(texts, name=name, classes=classes, class_names=class_names, aliases=aliases)
    splits = {split: _images(f"{name}/{split}", path, part, root, label_of) for split, (path, part) in tables.items()}
    return assemble(name, names, splits)


def _table(path: str, columns: tuple[str, ...], delimiter: str) -> list[dict[str, str]]:
    """The rows of one file; raises ValueError if it or a column does not exist, or a row lacks a value."""
    file = Path(path).expanduser()
    try:
        reader = csv.DictReader(io.StringIO(text_of(file), newline=""), delimiter=delimiter)
        rows, header = list(reader), reader.fieldnames or []
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} {error}; pass a CSV file with the columns {' and '.join(columns)}") from error
    if lacking := [column for column in columns if column not in header]:
        raise ValueError(
            f"{file} has no column {', '.join(lacking)}; its columns are {', '.join(header) or 'none'}. Name the right ones with "
            f"dataset.path_column, dataset.label_column and dataset.cluster_column, or set dataset.delimiter (now {delimiter!r})"
        )
    short = [number for number, row in enumerate(rows, start=2) if not all((row[column] or "").strip() for column in columns[:2])]
    if short or not rows:
        raise ValueError(f"{file} {f'lacks a path or a label in line {short[0]}' if short else 'has no rows'}; each row needs both")
    return rows


def _entries(rows: list[dict[str, str]], columns: tuple[str, ...]) -> Rows:
    path, label, cluster = *columns[:2], columns[2] if len(columns) > 2 else CLUSTER
    return [(row[path].strip(), row[label].strip(), (row.get(cluster) or "").strip()) for row in rows]


def _by_split(
    rows: list[dict[str, str]], file: str, columns: tuple[str, ...], split_column: str | None, test_share: float, seed: int
) -> dict[str, Rows]:
    """The rows of each split, from the split column or drawn; raises ValueError if a split has another name."""
    if split_column not in (None, SPLIT, *rows[0]):
        raise ValueError(
            f"{file} has no column {split_column}; its columns are {', '.join(rows[0])}. Name the right one with dataset.split_column, or "
            "pass dataset.split_column=null to draw a test part"
        )
    if split_column is None or split_column not in rows[0]:
        return _drawn(_entries(rows, columns), test_share, seed)
    split_of = {spelling: split for split, spellings in SPLITS.items() for spelling in spellings}
    words = [(row[split_column] or "").strip().lower() for row in rows]
    if unknown := sorted(set(words) - set(split_of)):
        raise ValueError(f"{file} has the splits {', '.join(map(repr, unknown[:4]))} in column {split_column}; expected train, val or test")
    parts: dict[str, Rows] = {}
    for word, entry in zip(words, _entries(rows, columns), strict=True):
        parts.setdefault(split_of[word], []).append(entry)
    if "test" not in parts:
        raise ValueError(
            f"{file} has no test rows in column {split_column}; mark some, or pass dataset.split_column=null to draw a test part"
        )
    return parts


def _drawn(entries: Rows, test_share: float, seed: int) -> dict[str, Rows]:
    """A training and a test part, with this share of each class for testing."""
    if not 0 < test_share < 1:
        raise ValueError(f"dataset.test_share is between 0 and 1, got {test_share}")
    by_class: dict[str, Rows] = {}
    for entry in entries:
        by_class.setdefault(entry[1], []).append(entry)
    train, test = divided(by_class, test_share, seed)
    return {"train": [*chain(*train.values())], "test": [*chain(*test.values())]}


def _images(name: str, file: str, rows: Rows, root: str | None, label_of: dict[str, int]) -> LabelledImages:
    base = Path(root).expanduser() if root else Path(file).expanduser().parent
    ids, labels, clusters = ([row[place] for row in rows] for place in range(3))
    return file_images(name, ids, [label_of[label] for label in labels], [base / path for path in ids], clusters)
