"""Columns of Parquet tables that are read a row group at a time, so that memory does not grow with the number of rows."""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from threading import Lock
from typing import Any, overload

import pyarrow as pa
import xxhash
from pyarrow import parquet as pq

from multicrop.files import File, ObjectStoreError, retrying

LARGEST = 2**31  # bytes of one column of a row group, which is in memory while its rows are read
_LOCK = Lock()  # of several threads that ask for one row group, one reads it


@dataclass(frozen=True)
class Tables:
    """The rows of some Parquet files, one file after the other.

    Args:
        files: The files.
        groups: Per row group, the number of its file and its number there.
        starts: The first row of each row group, and the number of all rows.
    """

    files: list[File]
    groups: list[tuple[int, int]]
    starts: list[int]

    @classmethod
    def of(cls, files: Sequence[File], columns: Sequence[str]) -> "Tables":
        """Read the footers of files; raises ValueError if one is no Parquet file, or a row group is too large to be read."""
        groups, counts = [], [0]
        for number, file in enumerate(files):
            try:
                facts = retrying(lambda file=file: pq.read_metadata(readable(file)), file)
            except ObjectStoreError:
                raise
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} cannot be read as Parquet ({error}); name .parquet files that are complete") from error
            if lacking := [column for column in columns if column not in facts.schema.to_arrow_schema().names]:
                raise ValueError(f"{file} has no column {', '.join(lacking)}, as the first table of this split has; write it again")
            for place in range(facts.num_row_groups):
                group = facts.row_group(place)
                parts = [group.column(i) for i in range(group.num_columns)]
                if any(p.total_uncompressed_size > LARGEST and p.path_in_schema.partition(".")[0] in columns for p in parts):
                    raise ValueError(
                        f"row group {place} of {file} has a column of over {LARGEST >> 30} GiB, and a row group is read as a whole: write "
                        "the table again with fewer rows per row group (pyarrow: row_group_size=1000)"
                    )
                groups.append((number, place))
                counts.append(group.num_rows)
        return cls(list(files), groups, list(accumulate(counts)))

    def __len__(self) -> int:
        return self.starts[-1]

    def rows(self, group: int) -> range:
        """The rows of a row group."""
        return range(self.starts[group], self.starts[group + 1])

    def read(self, group: int, column: str, *, large: bool = False) -> pa.Array:
        """A column of one row group; of columns that hold images (`large`) two row groups are kept, of others sixteen."""
        number, place = self.groups[group]
        with _LOCK:
            return (_large if large else _small)(self.files[number], place, column)

    def cell(self, row: int, column: str, *, large: bool = False) -> Any:
        """One value."""
        group = bisect_right(self.starts, row) - 1
        return self.read(group, column, large=large)[row - self.starts[group]].as_py()


def readable(file: File) -> Path | io.IOBase:
    """What pyarrow reads: a path, or a reader that requests the parts of an object which pyarrow asks for."""
    return file if isinstance(file, Path) else file.open(buffering=0)


def _read(file: File, place: int, column: str) -> pa.Array:
    def once() -> pa.ChunkedArray:
        with pq.ParquetFile(readable(file)) as opened:
            return opened.read_row_group(place, columns=[column])[column]

    values = retrying(once, file).combine_chunks()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


_small, _large = lru_cache(16)(_read), lru_cache(2)(_read)


class Column(Sequence[Any]):
    """A column of tables as a sequence; it is pickled as the places of its files.

    Args:
        tables: The tables.
        name: The name of the column.
        value: What an item is made of a value; None: the value.
    """

    def __init__(self, tables: Tables, name: str, value: Callable[[Any], Any] | None = None) -> None:
        self.tables, self.name, self.value = tables, name, value

    def __len__(self) -> int:
        return len(self.tables)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._items(range(len(self))[index])
        found = self.tables.cell(range(len(self))[index], self.name)
        return found if self.value is None else self.value(found)

    def _items(self, rows: range) -> list[Any]:
        """The items of some rows, a row group at a time."""
        if rows.step != 1:
            return [self[row] for row in rows]
        found: list[Any] = []
        while len(found) < len(rows):
            group = bisect_right(self.tables.starts, rows[len(found)]) - 1
            own, first = self.tables.rows(group), rows[len(found)]
            found += self.part(group, slice(first - own.start, min(rows.stop, own.stop) - own.start))
        return found

    def __iter__(self) -> Iterator[Any]:
        for group in range(len(self.tables.groups)):
            yield from self.part(group)

    def part(self, group: int, chosen: slice = slice(None)) -> list[Any]:
        """The items of one row group, or of some of its rows."""
        found = self.tables.read(group, self.name)[chosen].to_pylist()
        return found if self.value is None else [self.value(item) for item in found]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"Column({self.name!r}, {len(self)} rows, {self.digest})"

    @cached_property
    def digest(self) -> str:
        """A hash of all items, in order."""
        digest = xxhash.xxh3_128()
        for group in range(len(self.tables.groups)):
            digest.update("".join(f"{item}\0" for item in self.part(group)).encode())
        return digest.hexdigest()


class RowNumbers(Column):
    """Ids of rows that have none: the number of the file and that of the row in it."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables, "")
        firsts = [0, *(group for group, (a, b) in enumerate(pairwise(tables.groups), start=1) if a[0] != b[0])]
        self.firsts = {tables.groups[group][0]: tables.starts[group] for group in firsts if tables.groups}

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return super().__getitem__(index)
        row = range(len(self))[index]
        number, _ = self.tables.groups[bisect_right(self.tables.starts, row) - 1]
        return f"{number:05d}/{row - self.firsts[number]:07d}"

    def part(self, group: int, chosen: slice = slice(None)) -> list[Any]:
        """The ids of one row group, or of some of its rows."""
        return [self[row] for row in self.tables.rows(group)[chosen]]
