"""`dataset=webdataset`: tar shards of (image, label) pairs, with an index of their samples, or read as a stream."""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import webdataset
from PIL import Image

from multicrop.data.base import Dataset, LabelledImages, StreamedImages, assemble, open_bytes
from multicrop.data.classes import ClassList, check_labels, classes_of, numbered_classes
from multicrop.files import content_hash

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff")


@dataclass(frozen=True)
class Sample:
    """Where a sample lies: its shard, the image's place in it, its id, and its label as the shard says it."""

    shard: int
    offset: int
    size: int
    key: str
    label: str


@dataclass(frozen=True)
class _Members:
    """Opens sample i from its place in its tar file; every call opens the file anew, so threads and processes do not meet."""

    shards: list[Path]
    places: list[tuple[int, int, int, str]]

    def __call__(self, index: int) -> Image.Image:
        shard, offset, size, key = self.places[index]
        with self.shards[shard].open("rb") as stream:
            stream.seek(offset)
            return open_bytes(stream.read(size), f"{key} in {self.shards[shard].name}")


def shards(
    *,
    train: str | None,
    validation: str | None,
    test: str | None,
    label_key: str,
    label_field: str | None,
    streaming: bool,
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
) -> Dataset:
    """Tar shards a split, as a path with braces or a glob: `data/test-{000..007}.tar`, `data/test-*.tar`.

    A sample is an image (`KEY.jpg`, .png, ...) and a label: the text of `KEY.cls`, or the `label_field` of `KEY.json` when `label_key` is
    json. Labels are class names, or numbers that `class_names` names. Local shards are indexed in one pass over their headers. With
    `streaming`, the test shards are read in passing by the webdataset library and may be URLs. Raises ValueError for shards that are
    missing or torn, samples without image or label, and labels out of range.
    """
    if not test:
        raise ValueError(
            "dataset=webdataset wants dataset.test: tar shards such as data/test-{000..007}.tar (and dataset.train for few-shot)"
        )
    name = Path(test).parent.name or "webdataset"
    if streaming:
        return _streamed(name, test, (label_key, label_field), class_names, classes)
    given = {split: shard_paths(urls) for split, urls in (("train", train), ("validation", validation), ("test", test)) if urls}
    samples = {
        split: [s for i, path in enumerate(paths) for s in _index(path, i, label_key, label_field)] for split, paths in given.items()
    }
    names, label_of = _classes(sorted({s.label for part in samples.values() for s in part}), name, class_names, classes, aliases)
    splits = {split: _images(f"{name}/{split}", paths, samples[split], label_of) for split, paths in given.items()}
    return assemble(name, names, splits)


def shard_paths(urls: str) -> list[Path]:
    """The local shards that a pattern names; raises ValueError when one is missing."""
    place = Path(urls).expanduser()
    if any(mark in place.name for mark in "*?["):
        paths = sorted(place.parent.glob(place.name))
    else:
        paths = [Path(path) for path in webdataset.shardlists.expand_urls(str(place))]
    if missing := [str(path) for path in paths if not path.is_file()] or ([] if paths else [urls]):
        raise ValueError(
            f"{len(missing)} shards are not there: {', '.join(missing[:3])}; mend dataset.test, dataset.train or dataset.validation. "
            "Shards at a URL can only be streamed (dataset.streaming=true)"
        )
    return paths


def _index(path: Path, shard: int, label_key: str, label_field: str | None) -> Iterator[Sample]:
    """The samples of one shard, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                key, _, ending = member.name.partition(".") if "/" not in member.name else _split(member.name)
                if member.isreg() and ending.lower() in IMAGE_KEYS:
                    images[key] = member
                elif member.isreg() and ending == label_key:
                    labels[key] = read_label(tar.extractfile(member).read(), label_key, label_field, f"{member.name} in {path.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no whole, uncompressed tar file ({error}); fetch it again, or unpack .tar.gz to .tar") from error
    if not images or set(images) != set(labels):
        lone = sorted(set(images) ^ set(labels))[:3]
        raise ValueError(
            f"{path} has {len(images)} images and {len(labels)} labels (.{label_key})"
            + (f"; alone: {', '.join(lone)}" if lone else "")
            + f". Each sample wants an image (.{', .'.join(IMAGE_KEYS[:3])}) and a .{label_key}; name another key with dataset.label_key"
        )
    for key, member in images.items():
        if member.offset_data + member.size > path.stat().st_size:
            raise ValueError(f"{path} ends in the middle of {member.name}; the file is torn, fetch it again")
        yield Sample(shard, member.offset_data, member.size, key, labels[key])


def _split(name: str) -> tuple[str, str, str]:
    folder, _, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}/{stem}", dot, ending


def read_label(data: bytes, label_key: str, label_field: str | None, name: str) -> str:
    """The label as text; raises ValueError when it is none."""
    try:
        text = data.decode("utf-8").strip()
        label = json.loads(text)[label_field] if label_key == "json" else text
    except (UnicodeDecodeError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{name} holds no label ({error!r}); it wants a text, or JSON with the field dataset.label_field={label_field}"
        ) from error
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise ValueError(f"{name} holds the label {label!r}; it wants a class name or a whole number")
    return str(label)


def _classes(
    found: list[str], name: str, class_names: str | None, classes: str | None, aliases: Mapping[str, str] | None
) -> tuple[ClassList, dict[str, int]]:
    if all(label.removeprefix("-").isdigit() for label in found):
        numbers = {label: int(label) for label in found}
        return numbered_classes(list(numbers.values()), what=name, classes=classes, class_names=class_names), numbers
    names = classes_of(found, what=f"the labels of {name}", classes=classes, class_names=class_names, aliases=aliases)
    return names, {label: row for row, label in enumerate(found)}


def _images(name: str, paths: list[Path], samples: list[Sample], label_of: dict[str, int]) -> LabelledImages:
    """One split; the fingerprint holds each shard's name, size and time of change."""
    facts = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths]
    places = [(s.shard, s.offset, s.size, s.key) for s in samples]
    ids = [s.key for s in samples]
    return LabelledImages(name, ids, [label_of[s.label] for s in samples], _Members(paths, places), content_hash(*facts, *ids))


def _streamed(name: str, urls: str, label: tuple[str, str | None], class_names: str | None, classes: str | None) -> Dataset:
    """A data set whose test images are a stream of shards; labels are numbers, or names of the list that is given."""
    if classes is None and class_names is None:
        raise ValueError(
            f"a stream cannot be searched for its classes; pass dataset.class_names=FILE for {name}, a JSON list in label order"
        )
    names = numbered_classes([], what=name, classes=classes, class_names=class_names)
    none = LabelledImages(f"{name}/none", [], [], _Members([], []), content_hash(name))
    test = StreamedImages(f"{name}/test", names.names, _Source(urls, label, names), content_hash(urls.rsplit("/", 1)[-1], *names.names))
    return Dataset(name, names.names, {}, none, none, test, names.keys)


@dataclass(frozen=True)
class _Source:
    """Whole shards `part`, `part` + `parts`, ... where there are enough of them, else every `parts`-th sample."""

    urls: str
    label: tuple[str, str | None]
    names: ClassList

    def __call__(self, part: int, parts: int) -> Iterator[tuple[str, int, Callable[[], Image.Image]]]:
        place = Path(self.urls).expanduser()
        globbed = any(mark in place.name for mark in "*?[")
        urls = [str(path) for path in shard_paths(self.urls)] if globbed else webdataset.shardlists.expand_urls(self.urls)
        whole = len(urls) >= parts
        row = self.names.index("dataset.class_names") | {str(i): i for i in range(len(self.names.names))}
        stream = webdataset.WebDataset(urls[part::parts] if whole else urls, shardshuffle=False, nodesplitter=None, workersplitter=None)
        for number, sample in enumerate(stream):
            if whole or number % parts == part:
                name = sample["__key__"]
                key = next((key for key in IMAGE_KEYS if key in sample), None)
                if key is None or self.label[0] not in sample:
                    raise ValueError(f"{name} lacks an image or its label .{self.label[0]}; name another key with dataset.label_key")
                text = read_label(sample[self.label[0]], *self.label, name)
                label = row.get(text, -1)
                check_labels([label], self.names.names, f"sample {name} (label {text})")
                yield name, label, partial(open_bytes, sample[key], name)
