"""Copies of finished banks between places: a folder or object storage, in either direction."""

from collections.abc import Iterator
from pathlib import Path

from multicrop.features.manifest import LAYOUT
from multicrop.features.remote import RemoteShardFolder
from multicrop.features.shards import ShardFolder
from multicrop.files import MANIFEST, Objects, ObjectStoreError


def copy_bank(bank: ShardFolder, source: Objects, target: Objects, copies: Path) -> Iterator[str | None]:
    """Copy a finished bank, shard by shard; shards that the target has whole are not copied again, and nothing is overwritten.

    A shard is verified by its checksum before it is copied and in the target, which is read for it. The manifest is copied last, and only
    if all shards are whole, so that a copy that was stopped is an unfinished bank.

    Args:
        bank: The bank.
        source: The objects of its folder.
        target: The objects of the folder of the copy.
        copies: A folder for one shard at a time.

    Yields:
        Per shard None, or its name where it is damaged in the source and cannot be copied.

    Raises:
        ObjectStoreError: If the target does not return what was written there.
    """
    known = {"objects": target, "top": copies, "limit": 0}
    there, damaged = RemoteShardFolder(copies / "target", bank.key, bank.images, bank.size, **known), False
    _copy_file(LAYOUT, source, target)
    for index in range(bank.count):
        name = bank.shard(index).name
        if there.read(index) is None:
            there.discard(index)
            if bank.read(index) is None:
                damaged = True
                yield name
                continue
            target.create(name, bank.shard(index).read_bytes())
            if there.read(index) is None:
                raise ObjectStoreError(f"{target.url}/{name} was written and fails its checksum: check that place, then copy again")
        yield None
    if not damaged:
        _copy_file(MANIFEST, source, target)


def _copy_file(name: str, source: Objects, target: Objects) -> None:
    if (content := source.read(name)) is not None:
        target.create(name, content)
