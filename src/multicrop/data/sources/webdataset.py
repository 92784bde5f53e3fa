"""`dataset=webdataset`: tar shards of (image, label) pairs, with an index of their samples, or read as a stream."""

import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from multicrop.data.base import Dataset, LabelledImages, StreamedImages, assemble, open_bytes
from multicrop.data.classes import ClassList, check_labels, numbered_classes
from multicrop.data.contents import FileContents
from multicrop.data.sources.labels import read_cluster, read_label, text_labels
from multicrop.data.sources.shard_urls import shard_urls, streamed
from multicrop.files import File, ObjectStoreError, RemoteFile, content_hash, file_at

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff")
ONE_IMAGE = "a key stands for one image with one label: give each sample its own key, or remove the copy"


@dataclass(frozen=True)
class Sample:
    """One sample: its shard, the offset and size of its image there, its id, its label as text, and its cluster."""

    shard: int
    offset: int
    size: int
    key: str
    label: str
    cluster: str = ""


@dataclass(frozen=True)
class _Members:
    """Opens sample i from its tar file; every call opens the file anew, so threads and processes share no state."""

    shards: list[File]
    places: list[tuple[int, int, int, str]]  # (shard, offset, bytes, id)

    def __call__(self, index: int) -> Image.Image:
        shard, offset, size, key = self.places[index]
        return open_bytes(_part(self.shards[shard], offset, size), f"{key} in {self.shards[shard].name}")


def _part(file: File, offset: int, size: int) -> bytes:
    """Some bytes of a shard."""
    if isinstance(file, RemoteFile):
        return file.objects.part(file.key, offset, offset + size)
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def shards(
    *,
    train: str | list[str] | None,
    validation: str | list[str] | None,
    test: str | list[str] | None,
    label_key: str,
    label_field: str | None,
    streaming: bool,
    class_names: str | None,
    classes: str | None,
    aliases: Mapping[str, str] | None,
    cluster_field: str | None = None,
) -> Dataset:
    """Read tar shards, indexed or as a stream, from disk or from object storage (``s3://bucket/shards/test-{000..007}.tar``).

    A sample is an image (`KEY.jpg`, .png, ...) and a label: the text of `KEY.cls`, or the `label_field` of `KEY.json` if `label_key` is
    json. Labels are class names, or numbers that `class_names` names. Shards are indexed in one pass over their headers.

    Args:
        train: The shards of training images as a path with braces or a glob (`data/train-{000..007}.tar`), or None.
        validation: The shards of validation images, or None.
        test: The shards of test images.
        label_key: Suffix of the member that holds the label.
        label_field: Name of the label in a JSON member.
        streaming: Whether to read the test shards, which may be URLs, once in order by the webdataset library.
        class_names: A JSON list of class names, or None: any order for names, label order for numbers.
        classes: A packaged class list that the names are matched to, or None.
        aliases: {name in the data: name in the list}.
        cluster_field: Field of `KEY.json` with the cluster of the sample (patient, video, session), or None; a stream has none.

    Returns:
        The data set; ids are the keys of the samples.

    Raises:
        ValueError: If shards do not exist, are torn or would run a command, a sample has no image or label or several, or a label is out of
            range.
    """
    if not test:
        raise ValueError(
            "dataset=webdataset needs dataset.test: tar shards such as data/test-{000..007}.tar (and dataset.train for few-shot)"
        )
    patterns = (("train", train), ("validation", validation), ("test", test))
    urls = {split: shard_urls(pattern, streaming=streaming) for split, pattern in patterns if pattern}
    name = Path(str(test)).parent.name or "webdataset"
    if streaming and cluster_field:
        raise ValueError("the images of a stream have no clusters; pass dataset.streaming=false or dataset.cluster_field=null")
    if streaming:
        return _streamed(name, urls["test"], (label_key, label_field), class_names, classes)
    given = {split: [file_at(url) for url in listed] for split, listed in urls.items()}
    samples = {
        split: [s for i, path in enumerate(paths) for s in _index(path, i, label_key, label_field, cluster_field)]
        for split, paths in given.items()
    }
    texts = (s.label for part in samples.values() for s in part)
    names, label_of = text_labels(texts, name=name, classes=classes, class_names=class_names, aliases=aliases)
    splits = {split: _images(f"{name}/{split}", paths, samples[split], label_of) for split, paths in given.items()}
    return assemble(name, names, splits)


def _index(path: File, shard: int, label_key: str, label_field: str | None, cluster_field: str | None) -> Iterator[Sample]:
    """The samples of one shard, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    clusters: dict[str, str] = {}
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                key, _, ending = member.name.partition(".") if "/" not in member.name else _split(member.name)
                if member.isreg() and ending.lower() in IMAGE_KEYS:
                    images[_new(key, images, f"{member.name} in {path.name}")] = member
                elif member.isreg() and (ending == label_key or (cluster_field and ending == "json")):
                    data, place = tar.extractfile(member).read(), f"{member.name} in {path.name}"
                    if ending == label_key:
                        labels[_new(key, labels, place)] = read_label(data, label_key, label_field, place)
                    if cluster_field and ending == "json":
                        clusters[key] = read_cluster(data, cluster_field, place)
    except ObjectStoreError:
        raise
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a complete, uncompressed tar file ({error}); download it again, or unpack .tar.gz to .tar"
        ) from error
    if not images or set(images) != set(labels):
        lone = sorted(set(images) ^ set(labels))[:3]
        raise ValueError(
            f"{path} has {len(images)} images and {len(labels)} labels (.{label_key})"
            + (f"; without the other: {', '.join(lone)}" if lone else "")
            + f". Each sample needs an image (.{', .'.join(IMAGE_KEYS[:3])}) and a .{label_key}; name another key with dataset.label_key"
        )
    end = path.stat().st_size if isinstance(path, Path) else path.facts.size
    for key, member in images.items():
        if member.offset_data + member.size > end:
            raise ValueError(f"{path} ends in the middle of {member.name}; the file is torn, download it again")
        yield Sample(shard, member.offset_data, member.size, key, labels[key], clusters.get(key, ""))


def _new(key: str, found: Mapping[str, object], name: str) -> str:
    """The key; raises ValueError if the shard has another member of this kind for it."""
    if key in found:
        raise ValueError(f"{name} repeats the key {key}; {ONE_IMAGE}")
    return key


def _split(name: str) -> tuple[str, str, str]:
    folder, _, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return f"{folder}/{stem}", dot, ending


def _images(name: str, paths: list[File], samples: list[Sample], label_of: dict[str, int]) -> LabelledImages:
    """One split; the fingerprint covers the name and the bytes of each shard."""
    places = [(s.shard, s.offset, s.size, s.key) for s in samples]
    ids = [s.key for s in samples]
    content = FileContents(name, [path.name for path in paths], paths, content_hash(*ids), per_image=False)
    clusters = [s.cluster for s in samples] if any(s.cluster for s in samples) else None
    return LabelledImages(name, ids, [label_of[s.label] for s in samples], _Members(paths, places), content, clusters=clusters)


def _streamed(name: str, urls: list[str], label: tuple[str, str | None], class_names: str | None, classes: str | None) -> Dataset:
    """A data set whose test images are a stream of shards; labels are numbers, or names of the list."""
    if classes is None and class_names is None:
        raise ValueError(
            f"a stream cannot be searched for its classes; pass dataset.class_names=FILE for {name}, a JSON list in label order"
        )
    names = numbered_classes([], what=name, classes=classes, class_names=class_names)
    none = LabelledImages(f"{name}/none", [], [], _Members([], []), content_hash(name))
    test = StreamedImages(
        f"{name}/test", names.names, _Source(urls, label, names), content_hash(*(url.rsplit("/", 1)[-1] for url in urls), *names.names)
    )
    return Dataset(name, names.names, {}, none, none, test, names.keys)


@dataclass(frozen=True)
class _Source:
    """Whole shards `part`, `part` + `parts`, ... if there are enough of them, else every `parts`-th sample."""

    urls: list[str]
    label: tuple[str, str | None]
    names: ClassList

    def __call__(self, part: int, parts: int) -> Iterator[tuple[str, int, Callable[[], Image.Image]]]:
        urls, whole = self.urls, len(self.urls) >= parts
        row = self.names.index("dataset.class_names") | {str(i): i for i in range(len(self.names.names))}
        for number, sample in enumerate(streamed(urls[part::parts] if whole else urls)):
            if whole or number % parts == part:
                name = sample["__key__"]
                keys = [key for key in IMAGE_KEYS if key in sample]
                if not keys or self.label[0] not in sample:
                    raise ValueError(f"{name} lacks an image or its label .{self.label[0]}; name another key with dataset.label_key")
                if len(keys) > 1:
                    raise ValueError(f"{name} has several images (.{', .'.join(keys)}); {ONE_IMAGE}")
                text = read_label(sample[self.label[0]], *self.label, name)
                label = row.get(text, -1)
                check_labels([label], self.names.names, f"sample {name} (label {text})")
                yield name, label, partial(open_bytes, sample[keys[0]], name)
