"""The logits of one row of a run, as the record keeps them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TOP = 20  # classes with their logits, per image
MOST_CLASSES = 1000  # of which all logits are kept
PARTS = ("top_classes", "top_logits", "log_sum_exp", "log_probabilities")


@dataclass(frozen=True)
class Scores:
    """Logits of one row, enough for top-k accuracy and calibration.

    Args:
        top_classes: Classes with the highest logits, best first, shape (images, k).
        top_logits: Their logits, shape (images, k).
        log_sum_exp: Logarithm of the sum of the exponentials of all logits, shape (images,).
        log_probabilities: All logits less ``log_sum_exp``, shape (images, classes), in half precision; None where they are not kept.
    """

    top_classes: np.ndarray
    top_logits: np.ndarray
    log_sum_exp: np.ndarray
    log_probabilities: np.ndarray | None = None

    @property
    def top_probabilities(self) -> np.ndarray:
        """Softmax probabilities of the best classes, shape (images, k)."""
        return np.exp(self.top_logits - self.log_sum_exp[:, None])

    def columns(self, row: str) -> dict[str, pa.Array]:
        """The columns of predictions.parquet that hold this row."""
        columns = {
            "top_classes": _listed(self.top_classes.astype(np.int32)),
            "top_logits": _listed(self.top_logits.astype(np.float32)),
            "log_sum_exp": pa.array(self.log_sum_exp.astype(np.float32)),
        }
        if self.log_probabilities is not None:
            columns["log_probabilities"] = _listed(self.log_probabilities.astype(np.float16))
        return {f"{row}_{part}": values for part, values in columns.items()}

    @classmethod
    def read(cls, path: Path, row: str) -> "Scores":
        """Read the columns of a row; raises KeyError where there are none."""
        table = read_columns(path, {f"{row}_{part}" for part in PARTS}.__contains__)
        kept = [part for part in PARTS if f"{row}_{part}" in table.column_names]
        if not set(PARTS[:3]) <= set(kept):
            raise KeyError(f"no logits of the row {row}")
        return cls(**{part: _array(table[f"{row}_{part}"]) for part in kept})


def read_columns(path: Path, wanted: Callable[[str], bool]) -> pa.Table:
    """The wanted columns of predictions.parquet, which is a file or a folder of parts."""
    first = min(path.glob("part-*"), default=path) if path.is_dir() else path
    names = [name for name in pq.read_schema(first).names if wanted(name)]
    if path.is_dir():
        return pq.read_table(path, columns=names, partitioning=None, page_checksum_verification=True)  # type: ignore[arg-type]
    with pq.ParquetFile(path, memory_map=False) as file:
        return file.read(names)


def _listed(values: np.ndarray) -> pa.Array:
    """A matrix as one column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _array(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers or of lists of equal length as an array."""
    values = column.combine_chunks()
    if not pa.types.is_fixed_size_list(values.type):
        return values.to_numpy()
    return values.flatten().to_numpy().reshape(len(values), values.type.list_size)
