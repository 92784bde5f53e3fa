"""BankFolder: a folder on disk that holds all banks. `RemoteBanks` (remote.py) is the same in object storage."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from multicrop.features.manifest import KNOB, agreed_size, stored_size
from multicrop.features.shards import SHARD_IMAGES, ShardFolder
from multicrop.files import MANIFEST, make_folder, read_facts


@dataclass(frozen=True)
class BankFolder:
    """A folder that holds all banks, at DATASET/KEY/vVIEWS.

    Args:
        cache: The folder.
    """

    cache: Path

    def finished(self, dataset: str, key: str) -> list[int]:
        """The views per image of the finished banks of a data set and a key, fewest first."""
        return sorted(int(path.parent.name[1:]) for path in self._top(dataset, key).glob(f"v*/{MANIFEST}"))

    def manifests(self, dataset: str) -> Iterator[tuple[str, int, dict]]:
        """Key, views per image and manifest of each finished bank of a data set; an empty manifest where it cannot be read."""
        for path in (self.cache / safe_name(dataset)).glob(f"*/v*/{MANIFEST}"):
            yield path.parts[-3], int(path.parts[-2][1:]), read_facts(path) or {}

    def begun(self, dataset: str, key: str, views: int, images: int) -> ShardFolder:
        """A bank that is there, with the size of its shards."""
        path = self._top(dataset, key) / f"v{views}"
        return ShardFolder(path, key, images, stored_size(path) or SHARD_IMAGES)

    def new(self, dataset: str, key: str, views: int, images: int, *, size: int) -> ShardFolder:
        """A bank to fill, whose shards have the size that its first writer chose; raises PermissionError where it cannot be written."""
        path = self._top(dataset, key) / f"v{views}"
        make_folder(path, KNOB)
        return ShardFolder(path, key, images, agreed_size(path, size))

    def used(self, folder: ShardFolder) -> None:
        """Note that a bank was used, for `multicrop bank prune`."""
        with suppress(OSError):  # a read-only cache keeps the time of an earlier use
            os.utime(folder.manifest_path)

    def _top(self, dataset: str, key: str) -> Path:
        return self.cache / safe_name(dataset) / key


def safe_name(dataset: str) -> str:
    """The name of a data set as one part of a path."""
    return dataset.replace("/", "-")
