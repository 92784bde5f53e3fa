"""Predictions of a large run: a folder of Parquet files, one per shard of the bank, each with its sums."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.files import ObjectStoreError, atomic, content_hash, read_facts, write_facts
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
        return [index for index, sealed in enumerate(self.seals()) if sealed is None]

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
        self.keep(index, table)

    def keep(self, index: int, table: pa.Table) -> None:
        """Write the file of one part."""
        with atomic(self.part(index)) as path:
            pq.write_table(table, path, write_page_checksum=True)

    def opened(self, index: int, *, whole: bool) -> Path | io.IOBase:
        """What pyarrow reads of one part; `whole`: more than its footer."""
        return self.part(index)

    def sums(self, index: int) -> Sums | None:
        """The sums of one part; None where it is missing, damaged or another run's."""
        return None if (text := self.sealed(index)) is None else Sums.from_facts(json.loads(text))

    def seals(self) -> Iterator[str | None]:
        """The sums of each part as they are written; None where it is missing, damaged or another run's."""
        return map(self.sealed, range(self.count))

    def sealed(self, index: int) -> str | None:
        """The sums of one part as they are written."""
        try:
            facts = pq.read_schema(self.opened(index, whole=False)).metadata or {}
        except ObjectStoreError:
            raise
        except (OSError, pa.ArrowException):
            return None
        text, meaning = (facts.get(name, b"").decode("utf-8", "replace") for name in (SUMS, MEANING))
        whole = meaning == self._meaning(index) and facts.get(CHECKSUM) == content_hash(text, meaning).encode()
        return text if whole else None

    def total(self) -> Sums:
        """The sums of all parts; raises RecordError where some are missing."""
        lacking: list[int] = []
        total: Sums | None = None
        for index, text in enumerate(self.seals()):
            if text is None:
                lacking.append(index)
            else:
                own = Sums.from_facts(json.loads(text))
                total = own if total is None else total + own
        if lacking or total is None:
            first = min(lacking, default=0)
            raise RecordError(f"{self.path}: {len(lacking)} of {self.count} parts are missing or damaged, first {first}; run it again")
        return total

    def write(self, path: Path) -> None:
        """Write the file that says that all parts are there, and remove files of parts of an earlier run.

        Args:
            path: This folder.
        """
        facts = {"key": self.key, "images": self.images, "part_images": self.size, "sums": asdict(self.total())}
        self.remove_stale()
        write_facts(path / PARTS, facts)

    def remove_stale(self) -> None:
        """Remove files of parts of an earlier run."""
        for stale in set(self.path.glob("part-*")) - {self.part(index) for index in range(self.count)}:
            stale.unlink()

    @classmethod
    def read(cls, path: Path) -> "PartFolder":
        """The parts of a finished run; raises RecordError where the folder is not complete."""
        facts = read_facts(path / PARTS)
        if facts is None:
            raise damaged(path / PARTS, "it is missing, or its content does not match its checksum")
        return cls(path, facts["key"], facts["images"], facts["part_images"])

    def confusions(self, rows: Sequence[str], classes: int) -> dict[str, Confusion]:
        """The confusion counts of some rows, from one reading."""
        counts = {row: Confusion(classes) for row in rows}
        for table in self.tables("label", *(f"{row}{PREDICTION}" for row in rows)):
            for row, own in counts.items():
                own.add(table["label"].to_numpy(), table[f"{row}{PREDICTION}"].to_numpy())
        return counts

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """Some columns, part after part; raises RecordError for a part that is missing or damaged."""
        return map(partial(self.table, columns=columns), range(self.count))

    def table(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one part; raises RecordError if it is missing or damaged."""
        try:
            with pq.ParquetFile(self.opened(index, whole=True), page_checksum_verification=True) as file:
                return file.read(list(columns))
        except ObjectStoreError:
            raise
        except (OSError, KeyError, pa.ArrowException) as error:
            raise damaged(self.part(index), error) from error

    def _meaning(self, index: int) -> str:
        rows = self.rows(index)
        return f"{self.key} {index}: images {rows.start} to {rows.stop} of {self.images}"
