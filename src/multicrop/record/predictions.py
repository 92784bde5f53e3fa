"""The predictions of a run, one row per image, and the file that holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.files import atomic

ROWS = ("global", "crops_mean", "aggregated", "final")  # two baselines, the aggregator, and the task's prediction


class RecordError(ValueError):
    """Raised for a folder without a readable record; the message says why."""


def damaged(path: Path, reason: object) -> RecordError:
    """The error of a file of a record that cannot be read; only the first line of the reason is kept."""
    first = str(reason).partition("\n")[0]
    return RecordError(f"{path.parent}: {path.name} is damaged or not a record of multicrop ({first}); run the experiment again")


@dataclass(frozen=True)
class Predictions:
    """Labels and predictions of a run, one entry per image.

    Args:
        image_id: Image ids.
        label: Class index per image, shape (images,).
        rows: Predicted class index per image, shape (images,), by row name (``ROWS``).
        domain: Domain per image; empty strings for a data set without domains.
        top_classes: Classes with the highest final logits, best first, shape (images, k).
        top_logits: Their logits, shape (images, k).
        cluster: Cluster per image (a video, a patient), ``""`` for an image in none; empty for a record of before clusters.
    """

    image_id: Sequence[str]
    label: np.ndarray
    rows: Mapping[str, np.ndarray]
    domain: Sequence[str]
    top_classes: Sequence[Sequence[int]] = ()
    top_logits: Sequence[Sequence[float]] = ()
    cluster: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.label)

    def correct(self, row: str = "final") -> np.ndarray:
        """Whether a row (one of ``ROWS``) classifies each image correctly: booleans, shape (images,)."""
        return self.rows[row] == self.label

    def accuracy(self, row: str = "final") -> float:
        """Top-1 accuracy of a row, from 0 to 1."""
        return float(self.correct(row).mean())

    def write(self, path: Path) -> None:
        """Write predictions.parquet."""
        columns = {"image_id": list(self.image_id), "domain": list(self.domain), "label": self.label}
        columns["cluster"] = list(self.cluster) or [""] * len(self)
        columns |= {f"{row}_prediction": self.rows[row] for row in ROWS}
        columns |= {"top_classes": list(self.top_classes), "top_logits": list(self.top_logits)} if len(self.top_classes) else {}
        with atomic(path) as partial:
            pq.write_table(pa.table(columns), partial)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read predictions.parquet; raises RecordError if the file is damaged or lacks a column."""
        try:
            table = pq.read_table(path)
            rows = {row: np.asarray(table[f"{row}_prediction"].to_pylist()) for row in ROWS}
            optional = ("top_classes", "top_logits", "cluster")
            top = [table[name].to_pylist() if name in table.column_names else () for name in optional]
            return cls(table["image_id"].to_pylist(), np.asarray(table["label"].to_pylist()), rows, table["domain"].to_pylist(), *top)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise damaged(path, error) from error
