"""The content of files: a hash of each file's bytes, kept in an index so that an unchanged file is read once."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import xxhash

from multicrop.files import File, RemoteFile, atomic, content_hash, is_url, retrying

BLOCK = 1 << 20  # bytes read at once
PART = 64  # files per task of a thread
THREADS = 8  # files read at once: network file systems answer side by side
SETTLED_SECONDS = 2.0  # a file changed later than this before it was hashed may change again within one tick of its clock
State = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode
Entry = tuple[State, str, bool]  # the state, the hash, and whether the file was settled when it was hashed
_FOLDERS: list[Path] = []


def keep_index_in(folder: Path) -> None:
    """Choose the folder of the indices of this process; until then it is ``contents`` in the folder MULTICROP_CACHE, if that is set."""
    _FOLDERS[:] = [folder]


def index_folder() -> Path | None:
    """Where indices are kept; None: nowhere, so that every process hashes anew."""
    if _FOLDERS:
        return _FOLDERS[0]
    place = os.environ.get("MULTICROP_CACHE")
    return Path(place, "contents") if place else None


@dataclass(frozen=True)
class FileContents:
    """Files with an id each, hashed when first asked.

    Args:
        name: Name of the data set and the split, which names the index.
        ids: One id per file.
        paths: The files.
        more: What else identifies the images, such as their ids where several are in one file.
        per_image: Whether each file is one image.
    """

    name: str
    ids: Sequence[str]
    paths: Sequence[File]
    more: str = ""
    per_image: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids and bytes, whatever the files' place and times."""
        return content_hash(self.more, *(f"{one}:{digest}" for one, digest in zip(self.ids, self.file_digests, strict=True)))

    @cached_property
    def file_digests(self) -> list[str]:
        """The hash of the bytes of each file."""
        return digests(self.name, self.paths)

    def subset(self, indices: Sequence[int], ids: Sequence[str]) -> "FileContents":
        """The content of some images, by their places and ids."""
        if not self.per_image:
            return replace(self, more=content_hash(self.more, *ids))
        return replace(self, ids=[self.ids[i] for i in indices], paths=[self.paths[i] for i in indices])


def digests(name: str, paths: Sequence[File]) -> list[str]:
    """A hash of the bytes of each file.

    The index keys a file by path, size, times of modification and of change, and inode. Where any differs, the file is read again. A file
    that was changed less than two seconds before it was read is not entered.

    Args:
        name: Names the index, such as the data set and the split.
        paths: The files.

    Returns:
        One hash per file, in order.

    Raises:
        OSError: If a file cannot be read.
    """
    folder, places = index_folder(), [str(path.absolute()) for path in paths]
    index = Index.beside(folder, name, places) if folder and places else None
    known = index.read() if index else {}
    parts = [places[start : start + PART] for start in range(0, len(places), PART)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = [entry for part in pool.map(lambda part: [_looked_up(place, known.get(place)) for place in part], parts) for entry in part]
    fresh = {place: entry for place, entry in zip(places, found, strict=True) if entry[2] and entry != known.get(place)}
    if index and fresh:
        index.write(known | fresh)
    return [digest for _, digest, _ in found]


def _looked_up(place: str, known: Entry | None) -> Entry:
    """The entry of a file: the known one where the file has not changed since."""
    if known is not None and known[0] == retrying(lambda: _state(place), place):
        return known
    return retrying(lambda: _hashed(place), place)


def _hashed(place: str) -> Entry:
    """State and hash of a file; not settled where it was changed a moment ago or while it was read."""
    digest, before, now = xxhash.xxh3_128(), _state(place), time.time()
    # places are texts, of which a large data set has a million
    with RemoteFile(place).open() if is_url(place) else open(place, "rb", buffering=0) as stream:  # noqa: PTH123
        while block := stream.read(BLOCK):
            digest.update(block)
    return before, digest.hexdigest(), before == _state(place) and now - max(before[1:3]) / 1e9 > SETTLED_SECONDS


def _state(place: str) -> State:
    if is_url(place):
        facts = RemoteFile(place).facts
        return facts.size, int(facts.modified * 1e9), 0, 0
    found = Path(place).stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclass(frozen=True)
class Index:
    """A text file of one line per file, after a line with the checksum of the rest. It may be lost: then files are hashed again.

    Processes that write the same index at once each write a whole one; the last is kept.
    """

    path: Path

    @classmethod
    def beside(cls, folder: Path, name: str, places: Sequence[str]) -> "Index":
        """The index of a data set, by its name and the folder of its files."""
        top = os.path.commonpath([str(Path("/", place).parent) for place in places])  # an address begins as no path does
        return cls(folder / f"{name.replace('/', '-')}-{content_hash(name, top)[:12]}.index")

    def read(self) -> dict[str, Entry]:
        """The entries by path; none where the index is missing or damaged."""
        try:
            checksum, _, lines = retrying(self.path.read_bytes, self.path).partition(b"\n")
        except OSError:
            return {}
        if checksum.decode("ascii", "replace") != xxhash.xxh3_128_hexdigest(lines):
            return {}
        rows = (line.split(" ", 5) for line in os.fsdecode(lines).split("\n") if line)
        return {place: ((int(size), int(mtime), int(ctime), int(inode)), digest, True) for digest, size, mtime, ctime, inode, place in rows}

    def write(self, entries: dict[str, Entry]) -> None:
        """Write the index whole or not at all; a folder that cannot be written to has none."""
        rows = [f"{digest} {' '.join(map(str, state))} {place}\n" for place, (state, digest, _) in entries.items() if "\n" not in place]
        lines = os.fsencode("".join(rows))
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(self.path) as partial:
                partial.write_bytes(f"{xxhash.xxh3_128_hexdigest(lines)}\n".encode() + lines)
