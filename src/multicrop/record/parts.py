"""Predictions of a large run: a folder of Parquet files, one per shard of the bank, each with its sums."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.files import atomic, content_hash, read_facts, write_facts
from multicrop.record.predictions import PREDICTION, Predictions, RecordError, damaged
from multicrop.record.sums import Confusion, Sums

PARTS = "_parts.json"  # written when all parts are: readers of Parquet folders ignore names that begin with _
CONFIDENCE, BRIER = "_confidence", "_brier"  # end the names of columns
SUMS, MEANING, CHECKSUM = b"multicrop.sums", b"multicrop.meaning", b"multicrop.checksum"  # entries of a file's footer


@dataclass(frozen=True)
class PartFolder:
    """The parts of the predictions of one run.

    Args:
        path: The folder.
        key: What decides the predictions; parts of another key count as missing.
        images: Images of the data set.
        size: Images per part, of which the last has fewer.
    """

    path: Path
    key: str
    images: int
    size: int

    @property
    def count(self) -> int:
        """Parts of a whole run."""
        return -(-self.images // self.size)

    def part(self, index: int) -> Path:
        """The file of one part."""
        return self.path / f"part-{index:07d}.parquet"

    def rows(self, index: int) -> range:
        """The images of one part, read or not."""
        return range(index * self.size, min((index + 1) * self.size, self.images))

    def missing(self) -> list[int]:
        """The parts that are not there, are damaged or have another key."""
        return [index for index in range(self.count) if self._sealed(index) is None]

    def put(
        self,
        index: int,
        found: Predictions,
        confidence: Mapping[str, np.ndarray],
        brier: Mapping[str, np.ndarray],
        *,
        unreadable: int = 0,
    ) -> None:
        """Write one part.

        Args:
            index: Its number.
            found: The predictions of its images.
            confidence: Probability of the predicted class per image, by row.
            brier: Brier score per image, by row.
            unreadable: Images of the part that could not be read.
        """
        sums, meaning = json.dumps(asdict(Sums.of(found, confidence, brier, unreadable))), self._meaning(index)
        columns = found.columns()
        for row in found.rows:
            columns |= {f"{row}{CONFIDENCE}": confidence[row].astype(np.float32), f"{row}{BRIER}": brier[row].astype(np.float32)}
        table = pa.table(columns).replace_schema_metadata({SUMS: sums, MEANING: meaning, CHECKSUM: content_hash(sums, meaning)})
        with atomic(self.part(index)) as partial:
            pq.write_table(table, partial, write_page_checksum=True)

    def sums(self, index: int) -> Sums | None:
        """The sums of one part; None where it is missing, damaged or another run's."""
        return None if (text := self._sealed(index)) is None else Sums.from_facts(json.loads(text))

    def _sealed(self, index: int) -> str | None:
        """The sums of one part as they are written."""
        try:
            facts = pq.read_schema(self.part(index)).metadata or {}
        except (OSError, pa.ArrowException):
            return None
        text, meaning = (facts.get(name, b"").decode("utf-8", "replace") for name in (SUMS, MEANING))
        whole = meaning == self._meaning(index) and facts.get(CHECKSUM) == content_hash(text, meaning).encode()
        return text if whole else None

    def total(self) -> Sums:
        """The sums of all parts; raises RecordError where some are missing."""
        found = [self.sums(index) for index in range(self.count)]
        if lacking := [index for index, sums in enumerate(found) if sums is None]:
            raise RecordError(f"{self.path}: {len(lacking)} of {self.count} parts are missing or damaged, first {lacking[0]}; run it again")
        return reduce(add, (sums for sums in found if sums is not None))

    def write(self, path: Path) -> None:
        """Write the file that says that all parts are there, and remove files of parts of an earlier run.

        Args:
            path: This folder.
        """
        facts = {"key": self.key, "images": self.images, "part_images": self.size, "sums": asdict(self.total())}
        for stale in set(path.glob("part-*")) - {self.part(index) for index in range(self.count)}:
            stale.unlink()
        write_facts(path / PARTS, facts)

    @classmethod
    def read(cls, path: Path) -> "PartFolder":
        """The parts of a finished run; raises RecordError where the folder is not complete."""
        facts = read_facts(path / PARTS)
        if facts is None:
            raise damaged(path / PARTS, "it is missing, or its content does not match its checksum")
        return cls(path, facts["key"], facts["images"], facts["part_images"])

    def confusion(self, row: str, classes: int) -> Confusion:
        """The confusion counts of a row."""
        counts = Confusion(classes)
        for table in self.tables("label", f"{row}{PREDICTION}"):
            counts.add(table["label"].to_numpy(), table[f"{row}{PREDICTION}"].to_numpy())
        return counts

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """Some columns, part after part; raises RecordError for a part that is missing or damaged."""
        for index in range(self.count):
            try:
                with pq.ParquetFile(self.part(index), page_checksum_verification=True) as file:
                    yield file.read(list(columns))
            except (OSError, KeyError, pa.ArrowException) as error:
                raise damaged(self.part(index), error) from error

    def _meaning(self, index: int) -> str:
        rows = self.rows(index)
        return f"{self.key} {index}: images {rows.start} to {rows.stop} of {self.images}"
