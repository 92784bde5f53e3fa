"""The banks of a place, a folder or object storage: sizes and times, and how to delete one. Without torch, so that a list is quick."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from filelock import FileLock, Timeout

from multicrop.files.objects import Objects, StoredObject, is_url
from multicrop.files.seals import MANIFEST, facts_in, read_facts

HOUR = 3_600


@dataclass(frozen=True)
class StoredBank:
    """One bank of a place; `manifest` is empty for an unfinished bank. In object storage `path` is its name below `url`."""

    path: PurePath
    manifest: dict
    size: int  # bytes
    used: float  # time of the last use (in object storage: of the last writing), seconds since the epoch
    url: str = ""
    files: tuple[str, ...] = ()  # in object storage, their names

    def __str__(self) -> str:
        return f"{self.url}/{self.path}" if self.url else str(self.path)


def find(place: str) -> list[StoredBank]:
    """The banks of a folder or URL, largest first.

    Args:
        place: As ``paths.cache``.

    Returns:
        The banks, finished or not.

    Raises:
        ValueError: If there is no such folder.
    """
    if not is_url(place) and not Path(place).is_dir():
        raise ValueError(f"{place} is not a folder; pass the folder of the banks with --cache (paths.cache of your runs)")
    return sorted(_at_url(place) if is_url(place) else _in_folder(Path(place)), key=lambda bank: -bank.size)


def _in_folder(cache: Path) -> list[StoredBank]:
    """The banks in a folder."""
    banks = []
    for path in cache.glob("*/*/v*"):
        if not path.is_dir():
            continue
        files = [file.stat() for file in path.iterdir() if file.is_file()]
        manifest = read_facts(path / MANIFEST) or {}
        used = max((file.st_mtime for file in files), default=path.stat().st_mtime)
        banks.append(StoredBank(path, manifest, sum(file.st_size for file in files), used))
    return banks


def _at_url(url: str) -> list[StoredBank]:
    """The banks in object storage."""
    objects, found = Objects(url), dict[PurePath, list[StoredObject]]()
    for stored in objects.list():
        path = PurePosixPath(stored.name).parent
        if len(path.parts) == 3 and path.name.startswith("v"):
            found.setdefault(path, []).append(stored)
    banks = []
    for path, its in found.items():
        names = tuple(sorted((stored.name for stored in its), key=lambda name: not name.endswith(MANIFEST)))  # the manifest first
        manifest = facts_in(objects.read(names[0]) or b"") if names[0].endswith(MANIFEST) else None
        size, used = sum(stored.size for stored in its), max(stored.modified for stored in its)
        banks.append(StoredBank(path, manifest or {}, size, used, url.rstrip("/"), names))
    return banks


def has_manifest(bank: StoredBank) -> bool:
    """Whether a bank has the file that says that it is complete, damaged or not."""
    return bank.files[0].endswith(MANIFEST) if bank.url else (Path(bank.path) / MANIFEST).is_file()


def delete(bank: StoredBank) -> None:
    """Delete a bank, its manifest first."""
    if bank.url:
        Objects(bank.url).delete(bank.files)
        return
    shutil.rmtree(bank.path)
    Path(bank.path).with_suffix(".lock").unlink(missing_ok=True)


def in_use(bank: StoredBank) -> bool:
    """Whether a process holds a lock on a shard of this bank; in object storage, whether one was written within the last hour."""
    if bank.url:
        return not bank.manifest and time.time() - bank.used < HOUR
    for file in Path(bank.path).glob("*.lock"):
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
    return False
