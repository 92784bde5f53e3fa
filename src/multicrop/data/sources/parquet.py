"""`dataset=parquet`: images that Parquet tables list by their files or hold as bytes; no list of all images is in memory."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow import parquet as pq

from multicrop.data.base import Dataset, LabelledImages, open_bytes
from multicrop.data.classes import ClassList, check_labels
from multicrop.data.contents import FileContents
from multicrop.data.images import ImageError, open_image
from multicrop.data.sources.labels import text_labels
from multicrop.data.sources.parquet_columns import Column, RowNumbers, Tables, readable
from multicrop.data.sources.parquet_contents import ListedContents, repeated
from multicrop.files import File, ObjectStoreError, content_hash, file_at, files_at, is_url

IMAGE, HASH, CLUSTER = ("location", "bytes", "image"), "hash", "cluster"  # columns that are found by these names
KINDS = {32: "md5", 40: "sha1", 64: "sha256"}  # of hashes, by their digits


@dataclass(frozen=True)
class Names:
    """The columns of the tables of a split; None: there is none."""

    image: str
    label: str
    id: str | None
    hash: str | None
    cluster: str | None


def parquet(
    *,
    train: str | None,
    validation: str | None,
    test: str | None,
    root: str | None,
    image_column: str | None,
    label_column: str,
    id_column: str | None,
    hash_column: str | None,
    cluster_column: str | None,
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
) -> Dataset:
    """Read images that Parquet tables list or hold, a row group at a time, from disk or from object storage (``s3://bucket/tables``).

    Labels are class names, or numbers that `class_names` or a packaged list in label order names. Ids, labels and clusters of the images
    are read from the tables where they are needed, so that memory does not grow with the number of images.

    Args:
        train: The tables of training images: a file, a glob, or a folder of .parquet files; or None.
        validation: The tables of validation images, or None.
        test: The tables of test images.
        root: The folder that locations are relative to; None: that of the table. A location may be an address in object storage.
        image_column: The column of images: texts are paths of files, bytes are encoded images, and so are structures with a field `bytes`
            or `path`. None: `location`, `bytes` or `image`, the first that there is.
        label_column: The column of labels.
        id_column: The column of ids; None numbers the rows.
        hash_column: The column of hashes (MD5, SHA-1 or SHA-256, in hexadecimal digits) of the encoded images, which are compared when an
            image is opened; None: `hash`, where there is such a column. Without hashes the files are read for the identity of the data.
        cluster_column: The column of clusters (patient, video, session); None: `cluster`, where there is such a column.
        class_names: A JSON list of class names, or None: any order for names, label order for numbers.
        classes: A packaged class list that the names are matched to, or None.
        aliases: {name in the data: name in the list}.

    Returns:
        The data set.

    Raises:
        ValueError: If a file, a column or a value does not exist, ids repeat, or a label has no name.
    """
    if not test:
        raise ValueError("dataset=parquet needs dataset.test: a .parquet file, a glob or a folder of them (and dataset.train for few-shot)")
    wanted = (image_column, label_column, id_column, hash_column, cluster_column)
    found = {split: _tables(place, wanted) for split, place in (("train", train), ("validation", validation), ("test", test)) if place}
    name = Path(test).parent.name if Path(test).stem in found or any(mark in test for mark in "*?[") else Path(test).stem
    seen = {split: _labels(tables, names.label) for split, (tables, names) in found.items()}
    texts = {str(value) for values in seen.values() for value in values}
    listed, label_of = text_labels(texts, name=name, classes=classes, class_names=class_names, aliases=aliases)
    splits = {split: _images(f"{name}/{split}", *found[split], root, label_of) for split in found}
    _check(splits, {split: {label_of[str(value)] for value in values} for split, values in seen.items()}, listed)
    empty = splits["test"].subset([])
    return Dataset(name, listed.names, {}, splits.get("train", empty), splits.get("validation", empty), splits["test"], listed.keys)


def _tables(place: str, wanted: tuple[str | None, ...]) -> tuple[Tables, Names]:
    """The tables of a split and their columns."""
    if not (files := files_at(place, inside="*.parquet")):
        raise ValueError(f"{place} is not found: no .parquet file is there. Correct dataset.test, dataset.train or dataset.validation")
    try:
        schema = pq.read_schema(readable(files[0]))
    except ObjectStoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{files[0]} cannot be read as Parquet ({error}); name .parquet files that are complete") from error
    image, label, own_id, own_hash, cluster = wanted
    image = image or next((name for name in IMAGE if name in schema.names), IMAGE[0])
    own_hash, cluster = own_hash or (HASH if HASH in schema.names else None), cluster or (CLUSTER if CLUSTER in schema.names else None)
    names = Names(image, str(label), own_id, own_hash, cluster)
    columns = [name for name in (image, label, own_id, own_hash, cluster) if name]
    if lacking := [name for name in columns if name not in schema.names]:
        raise ValueError(
            f"{files[0]} has no column {', '.join(lacking)}; its columns are {', '.join(schema.names)}. Name the right ones with "
            "dataset.image_column, label_column, id_column (null: rows are numbered), hash_column and cluster_column"
        )
    tables = Tables.of(files, columns)
    if not len(tables):
        raise ValueError(f"{place} has no rows; name tables with images")
    return tables, names


def _labels(tables: Tables, column: str) -> set[object]:
    """The distinct labels; raises ValueError where one is missing, or is neither a text nor a whole number."""
    found: set[object] = set()
    for group in range(len(tables.groups)):
        values = tables.read(group, column)
        if values.null_count or not (pa.types.is_integer(values.type) or pa.types.is_string(values.type)):
            raise ValueError(
                f"the column {column} of {tables.files[tables.groups[group][0]]} holds {values.type} with {values.null_count} nulls: "
                "each row needs a label, all texts or all whole numbers. Name another with dataset.label_column"
            )
        found |= set(pc.unique(values).to_pylist())
    return found


@dataclass(frozen=True)
class _Labelled:
    """The label of a value of the column of labels."""

    label_of: dict[str, int]

    def __call__(self, value: object) -> int:
        return self.label_of[str(value)]


@dataclass(frozen=True)
class _Place:
    """The file of a location."""

    root: File

    def __call__(self, location: str) -> File:
        return file_at(location) if is_url(location) else self.root / Path(location).expanduser()


@dataclass(frozen=True)
class _Cells:
    """Opens the image of a row; its bytes are compared with their hash where the table has one."""

    tables: Tables
    names: Names
    place: _Place

    def __call__(self, index: int) -> Image.Image:
        value = self.tables.cell(index, self.names.image, large=True)
        value = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
        if not isinstance(value, str | bytes):
            raise ImageError(f"row {index} has no image but {type(value).__name__}; remove the row or set dataset.image_column")
        if self.names.hash is None:
            return _opened(self.place(value)) if isinstance(value, str) else open_bytes(value, f"row {index}")
        name = value if isinstance(value, str) else f"row {index}"
        data = self.place(value).read_bytes() if isinstance(value, str) else value
        own = str(self.tables.cell(index, self.names.hash)).lower()
        if len(own) not in KINDS or hashlib.new(KINDS[len(own)], data, usedforsecurity=False).hexdigest() != own:
            raise ValueError(
                f"{name} does not have the hash that the column {self.names.hash} gives ({own}; it knows {', '.join(KINDS.values())}): "
                "the image was changed, or the table is older. Write the table again"
            )
        return open_bytes(data, name)


def _opened(file: File) -> Image.Image:
    """The image of a file; an object is read first, so that an error of the storage is no fault of the image."""
    return open_image(file) if isinstance(file, Path) else open_bytes(file.read_bytes(), file.url)


def _images(name: str, tables: Tables, names: Names, root: str | None, label_of: dict[str, int]) -> LabelledImages:
    """One split."""
    place = _Place(file_at(root) if root else tables.files[0].parent)
    ids = Column(tables, names.id, str) if names.id else RowNumbers(tables)
    more, files = content_hash(names.image, names.id), [file.name for file in tables.files]
    if names.hash:
        content = ListedContents(name, [], [], more, per_image=False, listed=ids, hashes=Column(tables, names.hash))
    elif pa.types.is_string(tables.read(0, names.image).type):
        content = ListedContents(name, [], [], more, per_image=False, listed=ids, place=place, column=names.image)
    else:
        content = FileContents(name, files, tables.files, more, per_image=False)
    clusters = Column(tables, names.cluster, _cluster) if names.cluster else None
    labels = Column(tables, names.label, _Labelled(label_of))
    return LabelledImages(name, ids, labels, _Cells(tables, names, place), content, clusters=clusters)


def _cluster(value: object) -> str:
    return "" if value is None else str(value)


def _check(splits: Mapping[str, LabelledImages], labels: Mapping[str, set[int]], classes: ClassList) -> None:
    """Raise ValueError where ids are missing or repeat, a label has no class name, or a class has no test image."""
    for split, images in splits.items():
        check_labels(list(labels[split]), classes.names, images.name)
        if type(images.ids) is Column and (twice := repeated(images.ids)):
            raise ValueError(f"{len(twice)} ids of {images.name} are empty or repeat: {', '.join(twice[:3])}; give each image its own id")
    if absent := [title for label, title in enumerate(classes.names) if label not in labels["test"]]:
        raise ValueError(
            f"{len(absent)} of {len(classes.names)} classes have no test image in {splits['test'].name}: {', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}. Add images, or leave the classes out of the data"
        )
