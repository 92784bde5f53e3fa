"""RemoteFile: a file in object storage with those methods of a path that readers of data call."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from multicrop.files.objects import Objects, StoredObject, is_url

BLOCK = 1 << 20  # bytes of a request for a buffered reader
MARKS = "*?["  # of a glob


@dataclass(frozen=True)
class RemoteFile:
    """A file in object storage.

    Args:
        url: Its address, such as ``s3://bucket/folder/name``, without credentials.
    """

    url: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "RemoteFile":
        """The folder that holds it."""
        return RemoteFile(self.url.rstrip("/").rpartition("/")[0])

    @property
    def objects(self) -> Objects:
        """The objects of its bucket, so that a process has one client per bucket."""
        scheme, _, rest = self.url.partition("://")
        return Objects(f"{scheme}://{rest.partition('/')[0]}{'/' if scheme == 'file' else ''}")

    @property
    def key(self) -> str:
        """Its name in its bucket."""
        return self.url.partition("://")[2].partition("/")[2].strip("/")

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, other: str | Path) -> "RemoteFile":
        return RemoteFile(f"{self.url.rstrip('/')}/{other}")

    def absolute(self) -> "RemoteFile":
        """Itself."""
        return self

    @cached_property
    def facts(self) -> StoredObject:
        """Size and time, as they were when first asked; raises FileNotFoundError where there is no such file."""
        if (found := self.objects.facts(self.key)) is None:
            raise FileNotFoundError(f"{self.url} does not exist")
        return found

    def is_file(self) -> bool:
        """Whether it exists."""
        return self.objects.has(self.key)

    def read_bytes(self) -> bytes:
        """All of it; raises FileNotFoundError where there is no such file."""
        if (content := self.objects.read(self.key)) is None:
            raise FileNotFoundError(f"{self.url} does not exist")
        return content

    def open(self, mode: Literal["rb"] = "rb", buffering: int = BLOCK) -> io.IOBase:
        """Open it for reading at any place.

        Args:
            mode: As for a path.
            buffering: Bytes per request at least; 0: each reading is a request of its own.

        Returns:
            The reader; raises FileNotFoundError where there is no such file.
        """
        raw = _Ranges(self.objects, self.key, self.facts.size)
        return io.BufferedReader(raw, buffering) if buffering else raw


class _Ranges(io.RawIOBase):
    """Reads the parts of an object that are asked for."""

    def __init__(self, objects: Objects, name: str, size: int) -> None:
        super().__init__()
        self.objects, self.key, self.size, self.place = objects, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self.place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence])
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # type: ignore[override]
        end = min(self.place + len(buffer), self.size)
        if end <= self.place:
            return 0
        content = self.objects.part(self.key, self.place, end)
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


File = Path | RemoteFile


def file_at(place: str | Path) -> File:
    """The file of a path or an address; raises ValueError where an address has an unknown scheme or holds credentials."""
    if not is_url(place):
        return Path(place).expanduser()
    url = Objects(str(place)).url
    return Path(unquote(urlsplit(url).path)) if url.startswith("file:") else RemoteFile(url)


def files_at(place: str, *, inside: str) -> Sequence[File]:
    """The files of a path or an address that is a file, a glob in its last part, or a folder.

    Args:
        place: The path or address.
        inside: The glob of the files of a folder, at any depth.

    Returns:
        The files, sorted; none where nothing is there.
    """
    if isinstance(top := file_at(place), Path):
        globbed = any(mark in top.name for mark in MARKS) and not top.exists()
        found = top.rglob(inside) if top.is_dir() else top.parent.glob(top.name) if globbed else [top] if top.is_file() else []
        return sorted(found)
    if any(mark in top.name for mark in MARKS):
        return _listed(top.parent, lambda name: "/" not in name and fnmatchcase(name, top.name))
    return [top] if top.is_file() else _listed(top, lambda name: fnmatchcase(name.rpartition("/")[2], inside))


def _listed(folder: RemoteFile, wanted: Callable[[str], bool]) -> list[RemoteFile]:
    names = [found.name for found in Objects(folder.url).list()]
    return [folder / name for name in sorted(names) if wanted(name)]
