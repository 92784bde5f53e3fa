"""The base of all tasks: a LightningModule that tests over a feature bank.

Every task scores four rows on the same views, so that a run is a paired comparison with its own baselines: `global` (CLIP),
`crops_mean` (the crops averaged, label prompts), `aggregated` (the chosen aggregator, fused with the global logits) and `final` (what
the task predicts with).
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from multicrop.aggregators import Logits, Views, mean_feature
from multicrop.aggregators.score import Scorer
from multicrop.data.base import LabelledImages
from multicrop.features import FeatureBank
from multicrop.record import ROWS, Predictions

TOP_LOGITS = 5  # of the final row, per image, that the record keeps
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
    """Declare what the task reads that a function builds (see `Reads`), so that finished runs are found again by that and no more."""

    def declare(builder: Builder) -> Builder:
        _DECLARED[builder] = Reads(groups, seed, not_decisive, images)
        return builder

    return declare


def reads_of(builder: Callable[..., "BankTask"]) -> Reads:
    """What the task of a builder reads; everything that it could, where nothing is declared."""
    return _DECLARED.get(getattr(builder, "func", builder), Reads())


class BankTask(L.LightningModule):
    """Tests over a feature bank. A subclass says what the final logits are, and what else the run reads, saves and records.

    Args:
        scorer: Class logits of views: the aggregator's, fused with the global view's.
    """

    component: ClassVar[str | None] = None  # the config group of what the task adds to the aggregator
    save_every: int | None = None  # images between saves from which a killed run is resumed; None: no saves

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        n_classes = len(scorer.text.prompts)
        self.measures = {row: _metrics(n_classes, row) for row in ROWS}
        self.metrics = nn.ModuleDict(self.measures)
        self.collected: dict[str, list[Tensor]] = {}
        self.measured: dict[str, float] = {}
        self.seconds: dict[str, float] = dict.fromkeys(ROWS, 0.0)

    @abstractmethod
    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The logits that the task predicts with, shape (batch, classes)."""

    @property
    def state(self) -> nn.Module | None:
        """The module whose buffers change with the stream and are saved; None where nothing does."""
        return None

    def order(self, bank: FeatureBank) -> list[int] | None:
        """The rows of the bank in the order in which they are scored; None: as they lie."""
        return None

    def recorded(self, predictions: Predictions, *, n_views: int, resumed: int) -> dict[str, Any]:
        """What the task adds to the record's metrics.

        Args:
            predictions: What was predicted, in the order of the stream.
            n_views: Views per image.
            resumed: Images that an earlier process scored.
        """
        return {}

    def files(self, predictions: Predictions) -> dict[str, str]:
        """Text files that the task adds to the record, by name."""
        return {}

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Score all rows of one batch of (views, labels, image indices)."""
        views, labels, indices = batch
        text, scale = self.scorer.text, self.scorer.logit_scale
        logits = {
            "global": self._timed("global", self.scorer.global_logits, views),
            "crops_mean": self._timed("crops_mean", lambda v: mean_feature(v, text, scale, view_set="crops", text_set="label"), views),
            "aggregated": self._timed("aggregated", self.scorer, views),
        }
        logits["final"] = self._timed("final", self.final_logits, views, logits["aggregated"])
        self.collect({**logits, "label": labels, "index": indices})

    def collect(self, scored: Mapping[str, Tensor]) -> None:
        """Count and keep scored images: label, index and the logits of each row."""
        for row in ROWS:
            self.measures[row].update(scored[row].softmax(-1), scored["label"])
        for name, values in scored.items():
            self.collected.setdefault(name, []).append(values.cpu())

    def on_test_epoch_end(self) -> None:
        """Measure the final row as test/*, the other rows as test/<row>/*; logged where the trainer has a logger."""
        self.measured = {name: float(value) for row in ROWS for name, value in self.measures[row].compute().items()}
        if self.trainer.loggers:
            self.log_dict(self.measured)

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
        found = self.results()
        indices: list[int] = found["index"].tolist()
        top = found["final"].topk(min(TOP_LOGITS, found["final"].shape[1]))
        rows = {row: found[row].argmax(1).numpy() for row in ROWS}
        own = [domains[i] for i in indices] if domains else [""] * len(indices)
        shared = [clusters[i] for i in indices] if clusters else ()
        best = top.indices.tolist(), top.values.tolist()
        return Predictions([ids[i] for i in indices], found["label"].numpy(), rows, own, *best, cluster=shared)

    def _timed(self, row: str, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        started, spared = time.perf_counter(), self.scorer.spared
        value = function(*args)
        self.seconds[row] += time.perf_counter() - started + self.scorer.spared - spared
        return value


def _metrics(n_classes: int, row: str) -> MetricCollection:
    metrics = {
        "accuracy": MulticlassAccuracy(n_classes, average="micro"),
        "class_accuracy": MulticlassAccuracy(n_classes, average="macro"),
        "ece": MulticlassCalibrationError(n_classes, n_bins=15),
        "brier": BrierScore(),
    }
    return MetricCollection(metrics, prefix="test/" if row == "final" else f"test/{row}/")


class BrierScore(MeanMetric):
    """Mean over images of the squared distance between the probabilities and the one-hot label (Brier 1950), from 0 to 2."""

    def update(self, probability: Float[Tensor, "batch classes"], label: Int[Tensor, " batch"]) -> None:
        """Count a batch."""
        super().update((probability - one_hot(label, probability.shape[1])).square().sum(1))
