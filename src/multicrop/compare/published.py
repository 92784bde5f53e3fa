"""Numbers that papers report, read from experiments/published.csv."""

import csv
from dataclasses import dataclass
from pathlib import Path

from multicrop.config import ROOT

TABLE = ROOT / "experiments" / "published.csv"


@dataclass(frozen=True)
class Figure:
    """One row of the table: what a paper reports for a method, and the command that runs the same setting here."""

    study: str
    experiment: str
    dataset: str
    model: str
    method: str
    metric: str
    figure: float  # percent
    source: str
    note: str
    encoder_calls: int | None
    command: str

    def __str__(self) -> str:
        """`published: 59.78 % (WCA, top-1; WCA's results figure; WCA's own descriptions)`."""
        return f"published: {self.figure:.2f} % ({'; '.join(filter(None, (f'{self.method}, {self.metric}', self.source, self.note)))})"


def read_published(table: Path = TABLE) -> list[Figure]:
    """Read the table of published numbers.

    Args:
        table: A CSV file with the columns of ``Figure``. The list is empty where the file does not exist.

    Returns:
        The rows in the order of the file.

    Raises:
        ValueError: If a row lacks a column, a source, or a number as its figure.
    """
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as stream:
        return [_figure(row, f"{table}:{number}") for number, row in enumerate(csv.DictReader(stream), 2)]


def published_figures(experiment: str | None, dataset: str, model: str, *, table: Path = TABLE) -> list[Figure]:
    """Select the published numbers of a run's setting.

    Args:
        experiment: Option of the group ``experiment``, for instance ``zero_shot/wca``; None for a run without one.
        dataset: Option of the group ``dataset``.
        model: Option of the group ``model``.
        table: The CSV file.

    Returns:
        The rows in which all three agree; empty if there are none.
    """
    return [f for f in read_published(table) if (f.experiment, f.dataset, f.model) == (experiment, dataset, model)]


def _figure(row: dict[str, str], place: str) -> Figure:
    try:
        if not row["source"]:
            raise ValueError("no source")
        words = {name: row[name] for name in ("study", "experiment", "dataset", "model", "method", "metric", "source", "note", "command")}
        calls = int(row["encoder_calls"]) if row["encoder_calls"] else None
        return Figure(figure=float(row["figure"]), encoder_calls=calls, **words)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: a row needs every column, a number as figure and a source, got {row} ({error})") from error
