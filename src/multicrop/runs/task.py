"""The base of all tasks, which score a feature bank.

Every task scores four rows on the same views, so that a run is a paired comparison with its own baselines: `global` (CLIP),
`crops_mean` (the crops averaged, label prompts), `aggregated` (the chosen aggregator, fused with the global logits) and `final` (what
the task predicts with). Each aggregator that `task.beside` names has a further row.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from multicrop.aggregators import Logits, Views, mean_feature
from multicrop.aggregators.score import Scorer
from multicrop.data.base import LabelledImages
from multicrop.features import FeatureBank
from multicrop.record import BESIDE, ROWS, Detection, Predictions
from multicrop.runs.kept_logits import check_numbers, ranks, scores
from multicrop.runs.measures import measures, trust_measures

Builder = TypeVar("Builder", bound=Callable[..., "BankTask"])


@dataclass(frozen=True)
class Reads:
    """What a task reads beside encoder, texts, scored images, crops and aggregator; the defaults are those of an undeclared builder.

    Args:
        groups: The config groups of what the task adds.
        seed: Whether the run's ``seed`` decides numbers in another way than through knobs of the groups.
        not_decisive: Knobs of the task that do not decide its numbers, or do so through ``images``.
        images: Maps (session, knobs of the task) to further images that the task reads, such as a support set; None: no further ones.
    """

    groups: tuple[str, ...] = ("adapter", "method")
    seed: bool = True
    not_decisive: tuple[str, ...] = ()
    images: Callable[..., Sequence[LabelledImages]] | None = None


_DECLARED: dict[Callable[..., "BankTask"], Reads] = {}


def task_builder(
    *,
    groups: tuple[str, ...] = (),
    seed: bool = False,
    not_decisive: tuple[str, ...] = (),
    images: Callable[..., Sequence[LabelledImages]] | None = None,
) -> Callable[[Builder], Builder]:
    """Declare what the task of a builder reads (see `Reads`); the identity of its runs covers these parts alone."""

    def declare(builder: Builder) -> Builder:
        _DECLARED[builder] = Reads(groups, seed, not_decisive, images)
        return builder

    return declare


def reads_of(builder: Callable[..., "BankTask"]) -> Reads:
    """What the task of a builder reads; everything that it could, where nothing is declared."""
    return _DECLARED.get(getattr(builder, "func", builder), Reads())


class BankTask(nn.Module):
    """Scores a feature bank (`scoring.score`). A subclass says what the final logits are, and what else the run reads, saves and records.

    Args:
        scorer: Class logits of views: the aggregator's, fused with the global view's.
    """

    component: ClassVar[str | None] = None  # the config group of what the task adds to the aggregator
    all_logits: bool = False  # whether the record keeps the logits of all classes
    save_every: int | None = None  # images between saves from which a killed run is resumed; None: no saves
    batch_size: int | None = None  # images scored at once, where that is part of the result; None: trainer.batch_size

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.beside: dict[str, Scorer] = {}  # by row
        self.collected: dict[str, list[Tensor]] = {}
        self.measured: dict[str, float] = {}
        self.trust: dict[str, dict[str, float]] = {}  # by row
        self.unknown: dict[str, Any] = {}  # which images of unknown classes `trust` counts
        self.detection: Detection | None = None  # their scores beside those of the scored images
        self.seconds: dict[str, float] = dict.fromkeys(ROWS, 0.0)

    def show_beside(self, scorers: Mapping[str, Scorer]) -> None:
        """Add a row for each of further scorers, by the name of its aggregator."""
        for name, scorer in scorers.items():
            row = BESIDE + name
            self.beside[row], self.seconds[row] = scorer, 0.0

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows in the order of tables: baselines, aggregator, further aggregators, final."""
        return (*ROWS[:-1], *self.beside, ROWS[-1])

    def views_read(self, n_views: int) -> dict[str, int]:
        """Views per image that each row reads.

        Args:
            n_views: Views per image in the bank.
        """
        crops = max(1, n_views - 1)
        read = {row: scorer.views_read(n_views) for row, scorer in {"aggregated": self.scorer, **self.beside}.items()}
        return {"global": 1, "crops_mean": crops, **read, "final": n_views if self.component else read["aggregated"]}

    @abstractmethod
    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The logits that the task predicts with, shape (batch, classes)."""

    def read(self, images: LabelledImages) -> None:
        """Prepare for images other than the scored ones, before their batches come."""

    @property
    def state(self) -> nn.Module | None:
        """The module whose buffers change with the stream and are saved; None where nothing does."""
        return None

    @property
    def needs_whole_bank(self) -> str | None:
        """Why the task cannot be scored shard by shard; None where it can."""
        return None if self.state is None else "it learns from the stream of images"

    def fitted(self) -> dict[str, Any]:
        """What the record's metrics say of a fit."""
        return {}

    def fitted_files(self) -> Mapping[str, str | bytes]:
        """Files of the record that say what was fitted, by name."""
        return {}

    def order(self, bank: FeatureBank) -> list[int] | None:
        """The rows of the bank in the order in which they are scored; None: as they lie."""
        return None

    def recorded(self, predictions: Predictions, *, n_views: int, resumed: int) -> dict[str, Any]:
        """What the task adds to the record's metrics, with that of a fit.

        Args:
            predictions: What was predicted, in the order of the stream.
            n_views: Views per image.
            resumed: Images that an earlier process scored.
        """
        return self.fitted()

    def files(self, predictions: Predictions) -> Mapping[str, str | bytes]:
        """Files that the task adds to the record, by name: text or bytes."""
        return self.fitted_files()

    def on_test_start(self) -> None:
        """Prepare for the first batch."""

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Score all rows of one batch of (views, labels, image indices)."""
        views, labels, indices = batch
        text, scale = self.scorer.text, self.scorer.logit_scale
        logits = {
            "global": self._timed("global", self.scorer.global_logits, views),
            "crops_mean": self._timed("crops_mean", lambda v: mean_feature(v, text, scale, view_set="crops", text_set="label"), views),
            "aggregated": self._timed("aggregated", self.scorer, views),
            **{row: self._timed(row, scorer, views) for row, scorer in self.beside.items()},
        }
        logits["final"] = self._timed("final", self.final_logits, views, logits["aggregated"])
        self.collect({**logits, "label": labels, "index": indices})

    def collect(self, scored: Mapping[str, Tensor]) -> None:
        """Keep scored images: label, index and the logits of each row; raises ValueError where logits are no numbers."""
        for row in self.rows:
            check_numbers(row, scored[row])
        for name, values in scored.items():
            self.collected.setdefault(name, []).append(values.cpu())

    def measure(self) -> None:
        """Measure the final row as test/*, the other rows as test/<row>/*, and the confidence of each row."""
        found = self.results()
        prefixes = {row: "test/" if row == "final" else f"test/{row}/" for row in self.rows}
        self.measured = {f"{prefixes[row]}{name}": v for row in self.rows for name, v in measures(found[row], found["label"]).items()}
        self.trust = {row: trust_measures(found[row], found["label"]) for row in self.rows}

    def results(self) -> dict[str, Tensor]:
        """What was tested, in the order of the stream: label, index, and the logits of each row."""
        return {name: torch.cat(parts) for name, parts in self.collected.items()}

    def predictions(self, ids: Sequence[str], domains: Sequence[str] | None = None, clusters: Sequence[str] | None = None) -> Predictions:
        """What each row predicted, in the order of the stream.

        Args:
            ids: The id of each image of the data set.
            domains: The domain of each image of the data set, if it has domains.
            clusters: The cluster of each image of the data set, if it has clusters.
        """
        found, rows = self.results(), self.rows
        label = found["label"]
        indices: list[int] = found["index"].tolist()
        return Predictions(
            [ids[i] for i in indices],
            label.numpy(),
            {row: found[row].argmax(1).numpy() for row in rows},
            [domains[i] for i in indices] if domains else [""] * len(indices),
            [clusters[i] for i in indices] if clusters else (),
            ranks={row: ranks(found[row], label).numpy() for row in rows},
            scores={row: scores(found[row], all_logits=self.all_logits) for row in rows if self.component or row != "aggregated"},
        )

    def _timed(self, row: str, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        started, spared = time.perf_counter(), self.spared
        value = function(*args)
        self.seconds[row] += time.perf_counter() - started + self.spared - spared
        return value

    @property
    def spared(self) -> float:
        """Seconds that earlier jobs of a sweep spent on logits that this one read from the cache."""
        return sum(scorer.spared for scorer in (self.scorer, *self.beside.values()))
