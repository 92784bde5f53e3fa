"""The identity of images that tables list, and ids that repeat in them, without a list of all images."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from multicrop.data.contents import FileContents, digests
from multicrop.data.sources.parquet_columns import Column, Tables
from multicrop.files import File, content_hash, file_at

HASHES = 2**23  # of ids in memory at once


@dataclass(frozen=True, kw_only=True)
class ListedContents(FileContents):
    """The content of images that tables list: their ids, and the hashes of the tables, or where there are none those of the files.

    Args:
        listed: The ids of the images.
        hashes: Their hashes, or None.
        place: The path of the file of a value of the column `column`.
        column: The column of locations.
    """

    listed: Column
    hashes: Column | None = None
    place: Callable[[str], File] = file_at
    column: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids and bytes, whatever the files' place and times."""
        digest, tables = xxhash.xxh3_128(), self.listed.tables
        for group in range(len(tables.groups)):
            pairs = zip(self.listed.part(group), self._hashes(tables, group), strict=True)
            digest.update("".join(f"{image_id}:{own}\0" for image_id, own in pairs).encode())
        return content_hash(self.more, digest.hexdigest())

    def _hashes(self, tables: Tables, group: int) -> list[str]:
        if self.hashes is not None:
            return self.hashes.part(group)
        return digests(f"{self.name}-{group}", [self.place(text) for text in tables.read(group, self.column).to_pylist()])


def repeated(ids: Column, at_once: int = HASHES) -> Sequence[str]:
    """The ids that several rows have, or that are empty; hashes of at most about `at_once` ids are in memory, in several passes."""
    turns, found = -(-len(ids) // at_once), set[int]()
    for turn in range(turns):
        parts = [np.zeros(0, np.uint64)]
        for group in range(len(ids.tables.groups)):
            if not turn and ids.tables.read(group, ids.name).null_count:
                return ["None"]
            hashes = np.fromiter(map(_hash, ids.part(group)), np.uint64)
            parts.append(hashes[hashes % np.uint64(turns) == turn])
        hashes = np.sort(np.concatenate(parts))
        found |= set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    counts = Counter(one for one in ids if _hash(one) in found) if found else {}
    return [one for one, count in counts.items() if count > 1]


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())
