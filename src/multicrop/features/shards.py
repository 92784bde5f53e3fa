"""The shards of a bank, sealed by a checksum, and claims so that each shard is encoded once."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from multicrop.features.manifest import KNOB
from multicrop.files import MANIFEST, atomic, naming, read_facts, retrying, set_aside, write_facts

SHARD_IMAGES = 256


@dataclass(frozen=True)
class ShardFolder:
    """The folder of one bank: `count` shards of `size` images each, the last one shorter; `key` is the bank's identity.

    With `only`, one shard alone counts as missing.
    """

    path: Path
    key: str
    images: int
    size: int
    only: int | None = None

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
        return [index for index in (range(self.count) if self.only is None else (self.only,)) if not self.has(index)]

    def has(self, index: int) -> bool:
        """Whether a shard is on disk."""
        return self.shard(index).is_file()

    @property
    def manifest_path(self) -> Path:
        """The file that says that the bank is whole."""
        return self.path / MANIFEST

    def manifest(self) -> dict | None:
        """The manifest, or None where the bank is not whole; one that is damaged or another bank's is set aside."""
        facts = read_facts(self.manifest_path)
        if facts is not None and (facts.get("key"), facts.get("images"), facts.get("shard_images")) == (self.key, self.images, self.size):
            return facts
        if self.manifest_path.is_file():
            set_aside(self.manifest_path, "is damaged or not the manifest of this bank, and is made again", KNOB)
        return None

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write one shard, flushed to the disk before it gets its name; raises OSError when it cannot be written."""
        path = self.shard(index)
        with naming(path, KNOB), atomic(path) as partial:
            try:
                save_file(dict(tensors), partial, metadata={"shard": self.seal(index, tensors)})
            except SafetensorError as error:
                raise OSError(str(error)) from error
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())

    def read(self, index: int) -> dict[str, Tensor] | None:
        """One shard, memory-mapped, or None when it is missing, truncated, of another identity or place, or fails its checksum."""
        path = self.shard(index)
        try:
            retrying(lambda: path.open("rb").close(), path)  # a passing error is no damage
            with safe_open(path, "pt") as stream:
                sealed = (stream.metadata() or {}).get("shard")
            tensors = load_file(path)
        except (FileNotFoundError, SafetensorError):
            return None
        return tensors if sealed == self.seal(index, tensors) and len(tensors["readable"]) == len(self.rows(index)) else None

    def seal(self, index: int, tensors: Mapping[str, Tensor]) -> str:
        """The metadata of a shard: identity, images and checksum, in one entry because safetensors orders entries at random."""
        rows = self.rows(index)
        return f"{self.key} {index} images {rows.start} to {rows.stop} of {self.images} by {self.size} {checksum(tensors)}"

    def check(self) -> Sequence[dict[str, Tensor]] | None:
        """All shards; None after the damaged ones were set aside, with a warning, so that they are encoded again."""
        shards = [self.read(index) for index in range(self.count)]
        for index in [index for index, shard in enumerate(shards) if shard is None and self.has(index)]:
            self.discard(index)
        whole = [shard for shard in shards if shard is not None]
        return whole if len(whole) == self.count else None

    def opened(self) -> tuple[Sequence[dict[str, Tensor]], dict] | None:
        """Shards and manifest of a finished bank; one whose shards are damaged loses its manifest and those shards."""
        if (manifest := self.manifest()) is None:
            return None
        if (shards := self.check()) is None:
            self.reopen()
            return None
        return shards, manifest

    def unreadable(self) -> list[int] | None:
        """The images of a complete bank that could not be read; shards are verified one by one, and none stays in memory.

        None where shards were damaged: they are set aside, and the bank is to be filled again.
        """
        found, damaged = [], []
        for index in range(self.count):
            if (tensors := self.read(index)) is None:
                damaged.append(index)
            else:
                found += [self.rows(index)[place] for place in (tensors["readable"] == 0).nonzero().squeeze(1).tolist()]
        for index in damaged:
            self.discard(index)
        if damaged:
            self.reopen()
        return None if damaged else found

    def discard(self, index: int) -> None:
        """Set a damaged shard aside, with a warning, so that it is encoded again."""
        set_aside(self.shard(index), "fails its checksum and is made again", KNOB)

    def reopen(self) -> None:
        """Delete the manifest of a bank that has damaged shards."""
        with naming(self.manifest_path, KNOB), FileLock(self.path.with_suffix(".lock")):
            self.manifest_path.unlink(missing_ok=True)

    def finish(self, facts: Mapping[str, object]) -> None:
        """Write the manifest, after all shards."""
        own = {"key": self.key, "images": self.images, "shard_images": self.size}
        with naming(self.manifest_path, KNOB):
            write_facts(self.manifest_path, {**facts, **own})

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
        with naming(Path(lock.lock_file), KNOB):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
        if self.folder.has(index):
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
