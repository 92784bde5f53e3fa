"""Banks in object storage: shards are put once, by whoever comes first, and read through local copies whose size is limited."""

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from multicrop.features.manifest import LAYOUT, stored_size
from multicrop.features.places import safe_name
from multicrop.features.shards import SHARD_IMAGES, ShardFolder
from multicrop.files import MANIFEST, Objects, PersistentError, atomic, content_hash, facts_in, make_folder, naming, write_facts

log = logging.getLogger(__name__)
OPEN_SHARDS = 8  # memory-mapped at once; a file that is open keeps its disk space
LOCAL_KNOB = "paths.local"
_WRITTEN: Counter[Path] = Counter()  # bytes since this process last made room


@dataclass(frozen=True)
class RemoteShardFolder(ShardFolder):
    """One bank in object storage; `path` is the folder of its local copies, `top` that of all copies, which hold `limit` bytes at most."""

    objects: Objects = field(kw_only=True)
    top: Path = field(kw_only=True)
    limit: int = field(kw_only=True)

    def has(self, index: int) -> bool:
        """Whether a shard is stored."""
        return self.objects.has(self.shard(index).name)

    def missing(self) -> list[int]:
        """The shards that are not stored, from one listing."""
        if self.only is not None:
            return [] if self.has(self.only) else [self.only]
        stored = {found.name for found in self.objects.list()}
        return [index for index in range(self.count) if self.shard(index).name not in stored]

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Put one shard, unless another writer has; the local copy is that of the writer that came first."""
        content = save(dict(tensors), metadata={"shard": self.seal(index, tensors)})
        if self.objects.create(self.shard(index).name, content):
            self._keep(self.shard(index), content)

    def read(self, index: int) -> dict[str, Tensor] | None:
        """One shard, memory-mapped from its local copy, which is fetched where there is none or it is damaged."""
        path = self.shard(index)
        if (tensors := super().read(index)) is None and (content := self.objects.read(path.name)) is not None:
            self._keep(path, content)
            tensors = super().read(index)
        with suppress(OSError):
            os.utime(path)  # the copies that were not used for the longest time make room
        return tensors

    def check(self) -> "Sequence[dict[str, Tensor]] | None":
        """All shards, opened one after the other; None after the damaged ones were set aside, so that they are encoded again."""
        bad = [index for index in range(self.count) if self.read(index) is None]
        for index in bad:
            self.discard(index)
        return None if bad else RemoteShards(self)

    def discard(self, index: int) -> None:
        """Rename a damaged shard, so that it is encoded again."""
        name = self.shard(index).name
        self.shard(index).unlink(missing_ok=True)
        if self.has(index):
            self.objects.move(name, f"{name}.damaged")
            log.warning("%s/%s fails its checksum and is made again; the damaged one is kept as %s.damaged", self.objects.url, name, name)

    def manifest(self) -> dict | None:
        """The manifest, or None where the bank is not complete; a damaged one is deleted."""
        fetch(self.objects, MANIFEST, self.path)
        if not self.manifest_path.is_file():
            return None
        if (facts := super().manifest()) is None:
            self.objects.delete([MANIFEST])
        return facts

    def finish(self, facts: Mapping[str, object]) -> None:
        """Put the manifest, after all shards."""
        super().finish(facts)
        self.objects.create(MANIFEST, self.manifest_path.read_bytes())

    def reopen(self) -> None:
        """Delete the manifest of a bank that has damaged shards."""
        self.manifest_path.unlink(missing_ok=True)
        self.objects.delete([MANIFEST])

    def _keep(self, path: Path, content: bytes) -> None:
        """Write a local copy, and delete those that were not used for the longest time where all take too much space."""
        make_folder(path.parent, LOCAL_KNOB)
        with naming(path, LOCAL_KNOB), atomic(path) as partial:
            partial.write_bytes(content)
        _WRITTEN[self.top] += len(content)
        if _WRITTEN[self.top] > self.limit // 20:
            _WRITTEN[self.top] = 0
            make_room(self.top, self.limit, keep=path)


class RemoteShards(Sequence[dict[str, Tensor]]):
    """The shards of a bank in object storage, of which some are open at once."""

    def __init__(self, folder: RemoteShardFolder) -> None:
        self.folder = folder
        self.opened: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return self.folder.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self.opened:
            if (tensors := self.folder.read(index)) is None:
                raise PersistentError(f"{self.folder.objects.url}/{self.folder.shard(index).name} was whole and is not now; run it again")
            self.opened[index] = tensors
        self.opened.move_to_end(index)
        while len(self.opened) > OPEN_SHARDS:
            self.opened.popitem(last=False)
        return self.opened[index]


@dataclass(frozen=True)
class RemoteBanks:
    """A place in object storage that holds all banks, at DATASET/KEY/vVIEWS.

    Args:
        url: The place, such as ``s3://bucket/banks``.
        local: The folder of local copies of shards.
        limit: Bytes that these may take, up to a twentieth more.
    """

    url: str
    local: Path
    limit: int

    def finished(self, dataset: str, key: str) -> list[int]:
        """The views per image of the finished banks of a data set and a key, fewest first."""
        top = Objects(self.url).below(safe_name(dataset), key)
        views = [name for name in top.folders() if name[:1] == "v" and name[1:].isdigit()]
        return sorted(int(name[1:]) for name in views if top.has(f"{name}/{MANIFEST}"))

    def manifests(self, dataset: str) -> Iterator[tuple[str, int, dict]]:
        """Key, views per image and manifest of each finished bank of a data set; an empty manifest where it cannot be read."""
        top = Objects(self.url).below(safe_name(dataset))
        for key in top.folders():
            for views in self.finished(dataset, key):
                yield key, views, facts_in(top.read(f"{key}/v{views}/{MANIFEST}") or b"") or {}

    def begun(self, dataset: str, key: str, views: int, images: int) -> ShardFolder:
        """A bank that is stored, with the size of its shards."""
        path = self._path(dataset, key, views)
        for name in (LAYOUT, MANIFEST):
            fetch(self._objects(dataset, key, views), name, path)
        return self._folder(dataset, key, views, images, stored_size(path) or SHARD_IMAGES)

    def new(self, dataset: str, key: str, views: int, images: int, *, size: int) -> ShardFolder:
        """A bank to fill, whose shards have the size that its first writer chose."""
        path, objects = self._path(dataset, key, views), self._objects(dataset, key, views)
        make_folder(path, LOCAL_KNOB)
        write_facts(path / LAYOUT, {"shard_images": size})
        objects.create(LAYOUT, (path / LAYOUT).read_bytes())
        return self.begun(dataset, key, views, images)

    def used(self, folder: ShardFolder) -> None:
        """Nothing: an object keeps the time when it was written."""

    @property
    def _copies(self) -> Path:
        """The folder in which copies are deleted to make room: nothing else is in it."""
        return self.local.absolute() / "copies"

    def _folder(self, dataset: str, key: str, views: int, images: int, size: int) -> RemoteShardFolder:
        path, objects = self._path(dataset, key, views), self._objects(dataset, key, views)
        return RemoteShardFolder(path, key, images, size, objects=objects, top=self._copies, limit=self.limit)

    def _objects(self, dataset: str, key: str, views: int) -> Objects:
        return Objects(self.url).below(safe_name(dataset), key, f"v{views}")

    def _path(self, dataset: str, key: str, views: int) -> Path:
        return self._copies / content_hash(self.url)[:12] / safe_name(dataset) / key / f"v{views}"


def fetch(objects: Objects, name: str, folder: Path) -> None:
    """Make the local copy of a small file that of the store; without one there, there is none here."""
    if (content := objects.read(name)) is None:
        (folder / name).unlink(missing_ok=True)
        return
    make_folder(folder, LOCAL_KNOB)
    with naming(folder / name, LOCAL_KNOB), atomic(folder / name) as partial:
        partial.write_bytes(content)


def make_room(top: Path, limit: int, keep: Path) -> None:
    """Delete the local copies of shards that were not used for the longest time, until all take `limit` bytes at most."""
    found = []
    for path in top.rglob("shard-*.safetensors"):
        with suppress(FileNotFoundError):  # another process makes room as well
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > limit and path != keep:
            path.unlink(missing_ok=True)
            total -= size
