"""`dataset=hf`: an image classification set of the datasets library, by its hub id or from local parquet or arrow files."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from multicrop.data.base import Dataset, LabelledImages, StreamedImages, assemble, open_bytes
from multicrop.data.classes import ClassList, check_labels, classes_of, numbered_classes
from multicrop.data.images import ImageError, open_image
from multicrop.data.sources.hf_load import content_of, load, without_decoding
from multicrop.files import content_hash


@dataclass(frozen=True)
class _Rows:
    """Opens the encoded image of a row as `open_image` does; the library's own decoder is off."""

    table: Any
    column: str
    name: str

    def __call__(self, index: int) -> Image.Image:
        return open_value(self.table[index][self.column], f"row {index} of {self.name}")


def open_value(value: object, name: str) -> Image.Image:
    """The image in a cell ({bytes, path}, bytes, or a path); raises ImageError for anything else."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return open_bytes(value, name)
    if isinstance(value, str):
        return open_image(value)
    raise ImageError(f"{name} holds no image but {type(value).__name__}; remove the row or set dataset.image_column")


def hf(
    *,
    path: str | None,
    config: str | None,
    revision: str | None,
    train: str | None,
    validation: str | None,
    test: str,
    image_column: str,
    label_column: str,
    id_column: str | None,
    streaming: bool,
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
    cluster_column: str | None = None,
) -> Dataset:
    """Read a data set of the datasets library, from the hub or from local files, indexed or as a stream.

    Local files are split by name (`train-0.parquet`, `test.parquet`); a single file is the test split. Class names are those of a
    ClassLabel column or the distinct texts of the column; bare numbers need `class_names`. No code of a data set is run.

    Args:
        path: A hub id (owner/name), a .parquet or .arrow file, a glob, or a folder.
        config: Name of the configuration, if the set has several.
        revision: The commit, branch or tag of a hub set.
        train: Name of the training split, or None.
        validation: Name of the validation split, or None.
        test: Name of the test split.
        image_column: Name of the column of images.
        label_column: Name of the column of labels.
        id_column: Name of the column of ids; None numbers the rows.
        streaming: Whether to read the test split once in order, without downloading it first.
        class_names: A JSON list of class names, or None: any order for names, label order for numbers.
        classes: A packaged class list that the names are matched to, or None.
        aliases: {name in the data: name in the list}.
        cluster_column: Name of the column of clusters (patient, video, session), or None; a stream has none.

    Returns:
        The data set.

    Raises:
        ValueError: If the set, a split or a column does not exist, or the labels cannot be named.
    """
    if not path:
        raise ValueError("dataset=hf needs dataset.path: a hub id (owner/name), a .parquet or .arrow file, a glob of them, or their folder")
    wanted = {split: name for split, name in (("train", train), ("validation", validation), ("test", test)) if name}
    name = Path(path).stem if Path(path).suffix else path.rstrip("/").rsplit("/", 1)[-1]
    if streaming and cluster_column:
        raise ValueError("the images of a stream have no clusters; pass dataset.streaming=false or dataset.cluster_column=null")
    if streaming:
        stream = load(path, config, revision, {"test": test}, streaming=True)["test"]
        stream = without_decoding(stream, image_column, label_column, name)
        return _streamed(name, stream, (image_column, label_column, id_column), class_names, classes, aliases)
    tables = {
        split: without_decoding(table, image_column, label_column, name)
        for split, table in load(path, config, revision, wanted, streaming=False).items()
    }
    labels = {split: table.with_format(None)[label_column][:] for split, table in tables.items()}
    values = [value for column in labels.values() for value in column]
    names, label_of = _classes(tables["test"], label_column, values, name, class_names, classes, aliases)
    splits = {
        split: _indexed(f"{name}/{split}", table, (image_column, id_column, cluster_column), [label_of(v) for v in labels[split]], path)
        for split, table in tables.items()
    }
    return assemble(name, names, splits)


def _classes(
    table: Any,
    column: str,
    values: list[Any],
    name: str,
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
) -> tuple[ClassList, Callable[[Any], int]]:
    """The classes, and the label of a value of the label column."""
    feature = (table.features or {}).get(column)
    if isinstance(feature, datasets.ClassLabel):
        check_labels([int(value) for value in set(values)], feature.names, name)
        return classes_of(feature.names, what=name, classes=classes, class_names=class_names, aliases=aliases), int
    if all(isinstance(value, str) for value in values) and values:
        found = sorted(set(values))
        row = {value: index for index, value in enumerate(found)}
        return classes_of(
            found, what=f"column {column} of {name}", classes=classes, class_names=class_names, aliases=aliases
        ), row.__getitem__
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"column {column} of {name} holds neither class names nor whole numbers; set another dataset.label_column")
    return numbered_classes(values, what=name, classes=classes, class_names=class_names), int


def _indexed(name: str, table: Any, columns: tuple[str, str | None, str | None], labels: list[int], path: str) -> LabelledImages:
    """One split; an id is the value of the id column, or the number of the row."""
    image_column, id_column, cluster_column = columns
    for knob, column in (("id_column", id_column), ("cluster_column", cluster_column)):
        if column and column not in table.column_names:
            raise ValueError(f"{name} has no column {column}; its columns are {', '.join(table.column_names)}. Correct dataset.{knob}")
    split = name.rsplit("/", 1)[-1]
    ids = [str(value) for value in table[id_column][:]] if id_column else [f"{split}/{row:07d}" for row in range(len(table))]
    content = content_of(name, path, table, [split, image_column, *ids, *map(str, labels)])
    clusters = ["" if value is None else str(value) for value in table[cluster_column][:]] if cluster_column else None
    return LabelledImages(name, ids, labels, _Rows(table, image_column, name), content, clusters=clusters)


def _streamed(
    name: str,
    stream: Any,
    columns: tuple[str, str, str | None],
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
) -> Dataset:
    """A data set whose test images are a stream; each label is checked when it is read."""
    _, label_column, _ = columns
    feature = (stream.features or {}).get(label_column)
    if not isinstance(feature, datasets.ClassLabel) and class_names is None and classes is None:
        raise ValueError(
            f"a stream cannot be searched for its classes; pass dataset.class_names=FILE for {name}, a JSON list in label order"
        )
    values = list(range(len(feature.names))) if isinstance(feature, datasets.ClassLabel) else []
    if isinstance(feature, datasets.Value) and feature.dtype == "string":
        raise ValueError(f"the labels of {name} are texts; streaming needs numbers or a ClassLabel column. Pass dataset.streaming=false")
    names, _ = _classes(stream, label_column, values, name, class_names, classes, aliases)
    none = LabelledImages(f"{name}/none", [], [], _no_image, content_hash(name))
    test = StreamedImages(f"{name}/test", names.names, _Source(stream, columns, names.names, name), content_hash(name, *names.names))
    return Dataset(name, names.names, {}, none, none, test, names.keys)


def _no_image(index: int) -> Image.Image:
    raise IndexError(f"a stream's training images are not read (asked for {index}); pass dataset.streaming=false")


@dataclass(frozen=True)
class _Source:
    """Every `parts`-th row of the stream, from row `part` on."""

    stream: Any
    columns: tuple[str, str, str | None]
    names: list[str]
    name: str

    def __call__(self, part: int, parts: int) -> Iterator[tuple[str, int, Callable[[], Image.Image]]]:
        image_column, label_column, id_column = self.columns
        rows = ({k: v[0] for k, v in batch.items()} for batch in self.stream.iter(1))  # plain iteration would divide by worker, too
        for number, row in enumerate(rows):
            if number % parts == part:
                check_labels([int(row[label_column])], self.names, f"row {number} of {self.name}")
                image_id = str(row[id_column]) if id_column else f"test/{number:07d}"
                yield image_id, int(row[label_column]), partial(open_value, row[image_column], f"row {number} of {self.name}")
