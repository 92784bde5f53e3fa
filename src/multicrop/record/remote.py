"""Records in object storage: parts of predictions are put once, the other files at the end of the run, the manifest last."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.files import MANIFEST, Objects, ObjectStoreError, RemoteFile, atomic, content_hash, facts_in, is_url, read_facts
from multicrop.record.folder import PREDICTIONS
from multicrop.record.parts import PARTS, PartFolder
from multicrop.record.predictions import damaged

SIDE_BY_SIDE = 16  # requests
Item, Found = TypeVar("Item"), TypeVar("Found")


@dataclass(frozen=True)
class RemotePartFolder(PartFolder):
    """The parts of predictions in object storage; `path` is the folder of the run on this machine, which has none of them."""

    objects: Objects = field(kw_only=True)

    def keep(self, index: int, table: pa.Table) -> None:
        """Put one part, unless another writer has; one that is damaged or another run's makes room."""
        stream, name = io.BytesIO(), self.part(index).name
        pq.write_table(table, stream, write_page_checksum=True)
        if not self.objects.create(name, stream.getvalue()) and self.sealed(index) is None:
            self.objects.delete([name])
            self.objects.create(name, stream.getvalue())

    def opened(self, index: int, *, whole: bool) -> io.IOBase:
        """One part: all of it in one request, or only what is read."""
        file = RemoteFile(f"{self.objects.url}/{self.part(index).name}")
        return io.BytesIO(file.read_bytes()) if whole else file.open(buffering=0)

    def seals(self) -> Iterator[str | None]:
        """The sums of each part that is listed."""
        stored = {found.name for found in self.objects.list()}
        return ahead(lambda index: self.sealed(index) if self.part(index).name in stored else None, range(self.count))

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """Some columns, part after part."""
        return ahead(partial(self.table, columns=columns), range(self.count))

    def remove_stale(self) -> None:
        """Delete parts of an earlier run."""
        own = {self.part(index).name for index in range(self.count)}
        self.objects.delete([found.name for found in self.objects.list() if found.name not in own])


def ahead(function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """The values of a function, in order, computed ahead by `SIDE_BY_SIDE` threads; at most as many values wait."""
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == SIDE_BY_SIDE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def parts_at(place: str | Path) -> PartFolder:
    """The parts of a record in a folder or at an address; raises RecordError where they are not complete."""
    if not is_url(place):
        return PartFolder.read(Path(place) / PREDICTIONS)
    objects = Objects(str(place)).below(PREDICTIONS)
    if (facts := facts_in(objects.read(PARTS) or b"")) is None:
        raise damaged(Path(str(place), PREDICTIONS, PARTS), "it has no parts of predictions, or the run is not finished")
    return RemotePartFolder(Path(str(place), PREDICTIONS), facts["key"], facts["images"], facts["part_images"], objects=objects)


def check_free(objects: Objects) -> None:
    """Raise ValueError where there is a finished record, which is never overwritten."""
    if objects.has(MANIFEST):
        raise ValueError(f"{objects.url} holds a finished record, which is not overwritten: name another folder with hydra.run.dir=FOLDER")


def put_record(folder: Path, objects: Objects) -> bool:
    """Put the record of a run into object storage; the manifest is put last.

    Args:
        folder: The folder of the run.
        objects: The place of the record.

    Returns:
        Whether the folder has a record; it has none where a run fills banks alone, or a job of a sweep is skipped.

    Raises:
        ValueError: If the place holds a finished record.
        ObjectStoreError: If a file cannot be put; the record stays in the folder.
    """
    if (facts := read_facts(folder / MANIFEST)) is None:
        return False
    check_free(objects)
    try:
        for name in (*sorted(facts["files"]), MANIFEST):
            content = (folder / name).read_bytes()
            if not objects.create(name, content):  # of a run that was stopped while it put its record
                objects.delete([name])
                objects.create(name, content)
    except ObjectStoreError as error:
        raise ObjectStoreError(f"{error}. The record of the run is in {folder}") from error
    return True


def fetched(url: str, local: Path) -> Path:
    """Copies of all records below an address, as a folder; files that have not changed are not fetched again.

    Args:
        url: The address of a record, or of a folder of records.
        local: The folder of local copies; those of files that were deleted at the address are deleted there too.

    Returns:
        The folder of the copies.
    """
    top, objects = local / "records" / content_hash(url)[:12], Objects(url)
    stored = {top / found.name: found for found in objects.list()}
    for path, found in stored.items():
        if path.is_file() and path.stat().st_size == found.size and path.stat().st_mtime >= found.modified:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as copy:
            copy.write_bytes(objects.read(found.name) or b"")
    for path in top.rglob("*"):
        if path.is_file() and path not in stored and ".partial-" not in path.name:  # which another process writes
            path.unlink(missing_ok=True)
    return top
