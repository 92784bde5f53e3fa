"""The predictions of a run, one row per image, and the file that holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from multicrop.files import atomic
from multicrop.record.scores import Scores, read_columns

ROWS = ("global", "crops_mean", "aggregated", "final")  # two baselines, the aggregator, and the task's prediction
BESIDE = "beside/"  # begins the name of the row of a further aggregator
PREDICTION, RANK = "_prediction", "_rank"  # end the names of columns


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
        rows: Predicted class index per image, shape (images,), by row name (``ROWS``, and ``beside/NAME`` per further aggregator).
        domain: Domain per image; empty strings for a data set without domains.
        cluster: Cluster per image (a video, a patient), ``""`` for an image in none; empty where no image has one.
        ranks: Number of classes with a higher logit than the label, shape (images,), by row name; 0 where the prediction is correct.
        scores: Logits by row name, to be written; ``Record.scores`` reads them.
    """

    image_id: Sequence[str]
    label: np.ndarray
    rows: Mapping[str, np.ndarray]
    domain: Sequence[str]
    cluster: Sequence[str] = ()
    ranks: Mapping[str, np.ndarray] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    def correct(self, row: str = "final", *, k: int = 1) -> np.ndarray:
        """Whether the label is among the k best classes of a row.

        Args:
            row: Name of the row.
            k: Number of classes.

        Returns:
            Booleans, shape (images,).

        Raises:
            KeyError: If ``k`` is above 1 and there are no ranks of this row.
        """
        return self.rows[row] == self.label if k == 1 else self.ranks[row] < k

    def accuracy(self, row: str = "final", *, k: int = 1) -> float:
        """Top-k accuracy of a row.

        Args:
            row: Name of the row.
            k: Number of classes among which the label counts as right.

        Returns:
            The share of the images, from 0 to 1.

        Raises:
            KeyError: As `correct`.
        """
        return float(self.correct(row, k=k).mean())

    def columns(self) -> dict[str, pa.Array | np.ndarray]:
        """The columns of predictions.parquet."""
        texts = {"image_id": self.image_id, "domain": self.domain, "cluster": self.cluster or [""] * len(self)}
        columns = {name: pa.array(list(values), pa.string()) for name, values in texts.items()} | {"label": self.label}
        for row, predicted in self.rows.items():
            columns[f"{row}{PREDICTION}"] = predicted
            columns |= {f"{row}{RANK}": self.ranks[row].astype(np.int32)} if row in self.ranks else {}
            columns |= self.scores[row].columns(row) if row in self.scores else {}
        return columns

    def write(self, path: Path) -> None:
        """Write predictions.parquet."""
        with atomic(path) as partial:
            pq.write_table(pa.table(self.columns()), partial)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read predictions.parquet, a file or a folder of parts, without the logits.

        Args:
            path: The file or the folder.

        Returns:
            The predictions, in the order in which the images were scored.

        Raises:
            RecordError: If it is damaged or lacks a column.
        """
        try:
            table = read_columns(path, lambda name: name in FACTS or name.endswith((PREDICTION, RANK)))
            found = {name: table[name] for name in table.column_names}
            ids, label, domain, cluster = (found[name] for name in FACTS)
            rows, ranks = (_named(found, ending) for ending in (PREDICTION, RANK))
            if absent := [f"{row}{PREDICTION}" for row in ROWS if row not in rows]:
                raise KeyError(*absent)
            return cls(ids.to_pylist(), label.to_numpy(), rows, domain.to_pylist(), cluster.to_pylist(), ranks)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise damaged(path, error) from error


FACTS = ("image_id", "label", "domain", "cluster")


def correct_in(table: pa.Table, row: str) -> np.ndarray:
    """Whether the label is the class that a row predicts, from the columns of predictions.parquet; as `Predictions.correct`."""
    return table[f"{row}{PREDICTION}"].to_numpy() == table["label"].to_numpy()


def _named(columns: Mapping[str, pa.ChunkedArray], ending: str) -> dict[str, np.ndarray]:
    """The columns with this ending, by the name of their row."""
    return {name.removesuffix(ending): values.to_numpy() for name, values in columns.items() if name.endswith(ending)}


def read_scores(path: Path, row: str) -> Scores:
    """The logits of a row in predictions.parquet; raises RecordError if the file is damaged or has none of this row."""
    try:
        return Scores.read(path, row)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise damaged(path, error) from error
