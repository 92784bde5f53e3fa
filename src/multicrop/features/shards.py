"""The files of a bank: shards with a checksum, claims so that each shard is encoded once, and the manifest, written last."""

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from multicrop.files import atomic, write_text

SHARD_IMAGES = 256


@dataclass(frozen=True)
class ShardFolder:
    """The folder of one bank: `count` shards of `size` images each, the last one shorter; `key` is the bank's identity."""

    path: Path
    key: str
    images: int
    size: int

    @property
    def count(self) -> int:
        """Shards of a whole bank."""
        return -(-self.images // self.size)

    def shard(self, index: int) -> Path:
        """The file of one shard."""
        return self.path / f"shard-{index:05d}.safetensors"

    def rows(self, index: int) -> range:
        """The images of one shard."""
        return range(index * self.size, min((index + 1) * self.size, self.images))

    def missing(self) -> list[int]:
        """The shards that are not on disk."""
        return [index for index in range(self.count) if not self.shard(index).is_file()]

    @property
    def manifest_path(self) -> Path:
        """The file that says that the bank is whole."""
        return self.path / "manifest.json"

    def manifest(self) -> dict | None:
        """The manifest, or None where the bank is not whole."""
        return read_manifest(self.manifest_path)

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write one shard, flushed to the disk before it gets its name; raises OSError when it cannot be written."""
        path = self.shard(index)
        try:
            with atomic(path) as partial:
                save_file(dict(tensors), partial, metadata={"shard": self.seal(index, tensors)})
                with partial.open("rb") as stream:
                    os.fsync(stream.fileno())
        except (OSError, SafetensorError) as error:
            raise OSError(f"cannot write {path} ({error}); free some disk space or choose another place with paths.cache") from error

    def read(self, index: int) -> dict[str, Tensor] | None:
        """One shard, memory-mapped, or None when it is missing, truncated, of another identity or fails its checksum."""
        path = self.shard(index)
        try:
            with safe_open(path, "pt") as stream:
                sealed = (stream.metadata() or {}).get("shard")
            tensors = load_file(path)
        except (OSError, SafetensorError):
            return None
        return tensors if sealed == self.seal(index, tensors) and len(tensors["readable"]) == len(self.rows(index)) else None

    def seal(self, index: int, tensors: Mapping[str, Tensor]) -> str:
        """The metadata of a shard: identity, number and checksum, in one entry because safetensors orders entries at random."""
        return f"{self.key} {index} {checksum(tensors)}"

    def check(self) -> list[dict[str, Tensor]] | None:
        """All shards; None after the damaged ones were removed, with a warning, so that they are encoded again."""
        shards = [self.read(index) for index in range(self.count)]
        bad = [index for index, shard in enumerate(shards) if shard is None and self.shard(index).is_file()]
        for index in bad:
            warnings.warn(f"{self.shard(index)} fails its checksum; it is encoded again", stacklevel=2)
            with suppress(OSError):
                self.shard(index).unlink()
        whole = [shard for shard in shards if shard is not None]
        return whole if len(whole) == self.count else None

    def finish(self, facts: Mapping[str, object]) -> None:
        """Write the manifest, after all shards."""
        write_text(self.manifest_path, json.dumps(dict(facts), indent=1))

    def tidy(self) -> None:
        """Remove the lock files of claims; every process does so when no shard is missing."""
        for lock in self.path.glob("*.lock"):
            lock.unlink(missing_ok=True)


class Claims:
    """Locks on shards, so that several processes encode different shards; a process that dies releases its locks."""

    def __init__(self, folder: ShardFolder) -> None:
        self.folder, self.held = folder, dict[int, FileLock]()

    def take(self, index: int) -> bool:
        """Claim a missing shard; False where another process has claimed or written it."""
        lock = FileLock(self.folder.shard(index).with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        if self.folder.shard(index).is_file():
            lock.release()
            return False
        self.held[index] = lock
        for leftover in self.folder.path.glob(f"{self.folder.shard(index).name}.partial-*"):  # of a killed process
            leftover.unlink()
        return True

    def release(self, indices: Iterable[int] | None = None) -> None:
        """Give up the claims on these shards, or on all."""
        for index in list(self.held) if indices is None else list(indices):
            self.held.pop(index).release()

    def wait(self, index: int) -> None:
        """Wait until no other process works on a shard."""
        with FileLock(self.folder.shard(index).with_suffix(".lock")):
            pass


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bytes (xxh3 is as fast as memory; it detects accidents, not attacks)."""
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_manifest(path: Path) -> dict | None:
    """A manifest; None where it is missing or cannot be parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
