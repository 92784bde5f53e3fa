"""Scores that tell images of unknown classes from the scored ones, and the file of a record that holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.record.predictions import damaged

FACTS = ("image_id", "cluster", "known")
BETWEEN = ":"  # row and score in the name of a column


@dataclass(frozen=True)
class Detection:
    """How much each image looks like one of the scored classes, one entry per image; the scored images come first.

    Args:
        image_id: Image ids.
        cluster: Cluster per image, ``""`` for an image in none.
        known: Whether the image was scored; the others are of unknown classes. Shape (images,).
        scores: By row, then by name (``mcm``, ``energy``, ``max_logit``, ``msp``): one number per image, larger is more like a class.
    """

    image_id: Sequence[str]
    cluster: Sequence[str]
    known: np.ndarray
    scores: Mapping[str, Mapping[str, np.ndarray]]

    def packed(self) -> bytes:
        """The content of unknown.parquet."""
        texts = {"image_id": self.image_id, "cluster": self.cluster}
        columns = {name: pa.array(list(values), pa.string()) for name, values in texts.items()} | {"known": self.known}
        columns |= {f"{row}{BETWEEN}{name}": values for row, own in self.scores.items() for name, values in own.items()}
        pq.write_table(pa.table(columns), into := pa.BufferOutputStream())
        return into.getvalue().to_pybytes()

    @classmethod
    def read(cls, path: Path) -> "Detection":
        """Read unknown.parquet; raises RecordError if it is missing, damaged, or lacks a column."""
        try:
            with pq.ParquetFile(path, memory_map=False, page_checksum_verification=True) as file:
                table = file.read()
            ids, cluster, known = (table[name] for name in FACTS)
            scores: dict[str, dict[str, np.ndarray]] = {}
            for column in table.column_names[len(FACTS) :]:
                row, name = column.split(BETWEEN)
                scores.setdefault(row, {})[name] = table[column].to_numpy()
            return cls(ids.to_pylist(), cluster.to_pylist(), known.to_numpy(), scores)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise damaged(path, error) from error
