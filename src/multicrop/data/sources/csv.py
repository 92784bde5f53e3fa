"""`dataset=csv`: images listed in CSV files with a path and a label a row; one file a split, or one file with a split column."""

import csv
from collections.abc import Mapping
from pathlib import Path

from multicrop.data.base import Dataset, LabelledImages, assemble, divided, file_images
from multicrop.data.classes import ClassList, classes_of, numbered_classes

SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
Rows = list[tuple[str, str]]  # (path, label)


def csv_file(
    *,
    file: str | None,
    train: str | None,
    validation: str | None,
    test: str | None,
    root: str | None,
    path_column: str,
    label_column: str,
    split_column: str | None,
    delimiter: str,
    test_share: float,
    split_seed: int,
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
) -> Dataset:
    """One CSV a split (`train`, `validation`, `test`), or one `file` whose `split_column` says train, val or test of each row.

    Without any split, `test_share` of each class is for testing. Paths are relative to `root`, or to the CSV's own folder; ids are the
    paths as written. Labels are class names, or numbers from 0 that `class_names` (a JSON list) or a packaged list in label order
    names. Raises ValueError for missing files, columns and images, unknown splits, and labels out of range.
    """
    if (file is None) == (test is None):
        raise ValueError("dataset=csv wants dataset.file=CSV, or dataset.test=CSV (and dataset.train, dataset.validation where there are)")
    columns = (path_column, label_column)
    if file is not None:
        rows = _by_split(_table(file, columns, delimiter), file, columns, split_column, test_share, split_seed)
        tables = {split: (file, part) for split, part in rows.items()}
    else:
        given = {"train": train, "validation": validation, "test": test}
        tables = {split: (path, _pairs(_table(path, columns, delimiter), columns)) for split, path in given.items() if path}
    pairs = [pair for _, part in tables.values() for pair in part]
    name = Path(str(file or test)).stem
    names, label_of = _classes(pairs, name, classes, class_names, aliases)
    splits = {split: _images(f"{name}/{split}", path, part, root, label_of) for split, (path, part) in tables.items()}
    return assemble(name, names, splits)


def _table(path: str, columns: tuple[str, str], delimiter: str) -> list[dict[str, str]]:
    """The rows of one file; raises ValueError when it or a column is missing, or a row is short."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{file} does not exist; pass a CSV file with the columns {' and '.join(columns)}")
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        rows, header = list(reader), reader.fieldnames or []
    if lacking := [column for column in columns if column not in header]:
        raise ValueError(
            f"{file} has no column {', '.join(lacking)}; its columns are {', '.join(header) or 'none'}. Name the right ones with "
            f"dataset.path_column and dataset.label_column, or set dataset.delimiter (now {delimiter!r})"
        )
    short = [number for number, row in enumerate(rows, start=2) if not all((row[column] or "").strip() for column in columns)]
    if short or not rows:
        raise ValueError(f"{file} {f'lacks a path or a label in line {short[0]}' if short else 'has no rows'}; each row wants both")
    return rows


def _pairs(rows: list[dict[str, str]], columns: tuple[str, str]) -> Rows:
    return [(row[columns[0]].strip(), row[columns[1]].strip()) for row in rows]


def _by_split(
    rows: list[dict[str, str]], file: str, columns: tuple[str, str], split_column: str | None, test_share: float, seed: int
) -> dict[str, Rows]:
    """The rows of each split, as a column says or drawn; raises ValueError for a split of another name."""
    if split_column is None or split_column not in rows[0]:
        if not 0 < test_share < 1:
            raise ValueError(f"dataset.test_share lies between 0 and 1, got {test_share}")
        by_class: dict[str, Rows] = {}
        for pair in _pairs(rows, columns):
            by_class.setdefault(pair[1], []).append(pair)
        parts = divided(by_class, test_share, seed)
        return {
            split: [pair for members in part.values() for pair in members] for split, part in zip(("train", "test"), parts, strict=True)
        }
    spelled = {spelling: split for split, spellings in SPLITS.items() for spelling in spellings}
    said = [(row[split_column] or "").strip().lower() for row in rows]
    if strange := sorted(set(said) - set(spelled)):
        raise ValueError(f"{file} has the splits {', '.join(map(repr, strange[:4]))} in column {split_column}; it wants train, val or test")
    if "test" not in {spelled[word] for word in said}:
        raise ValueError(
            f"{file} has no test rows in column {split_column}; mark some, or pass dataset.split_column=null to draw a test part"
        )
    parts = dict.fromkeys(spelled[word] for word in said)
    return {split: _pairs([r for r, word in zip(rows, said, strict=True) if spelled[word] == split], columns) for split in parts}


def _classes(
    pairs: Rows, name: str, classes: str | None, class_names: str | None, aliases: Mapping[str, str] | None
) -> tuple[ClassList, dict[str, int]]:
    """The classes, and the label of each text in the label column."""
    spelled = sorted({label for _, label in pairs})
    if all(label.removeprefix("-").isdigit() for label in spelled):
        numbers = {label: int(label) for label in spelled}
        return numbered_classes(list(numbers.values()), what=name, classes=classes, class_names=class_names), numbers
    names = classes_of(spelled, what=f"the labels of {name}", classes=classes, class_names=class_names, aliases=aliases)
    return names, {label: row for row, label in enumerate(spelled)}


def _images(name: str, file: str, rows: Rows, root: str | None, label_of: dict[str, int]) -> LabelledImages:
    base = Path(root).expanduser() if root else Path(file).expanduser().parent
    return file_images(name, [path for path, _ in rows], [label_of[label] for _, label in rows], [base / path for path, _ in rows])
