"""The three tasks as LightningModules over a bank: zero-shot, few-shot adapter, test-time adaptation.

Every task scores four rows on the same views, so that a run is a paired comparison with its own baselines: `global` (CLIP),
`crops_mean` (the crops averaged, label prompts), `aggregated` (the chosen aggregator, fused with the global logits) and `final` (what
the task predicts).
"""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import lightning as L
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from multicrop.adapters.base import Adapter, EncoderAdapter, Examples
from multicrop.aggregators import Logits, Views, mean_feature
from multicrop.aggregators.score import Scorer, with_text
from multicrop.features import Bank
from multicrop.methods.base import Method
from multicrop.text import TextBank

SCORED_AT_ONCE = 64  # support images
ROWS = ("global", "crops_mean", "aggregated", "final")


class BankTask(L.LightningModule):
    """Tests over a bank; subclasses say what the final logits are."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer
        n_classes = len(scorer.text.prompts)
        self.metrics = torch.nn.ModuleDict({row: _metrics(n_classes, row) for row in ROWS})
        self.collected: dict[str, list[Tensor]] = {}
        self.measured: dict[str, float] = {}
        self.seconds = dict.fromkeys(ROWS, 0.0)

    @abstractmethod
    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The logits that the task predicts with."""

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
            self.metrics[row].update(scored[row].softmax(-1), scored["label"])
        for name, values in scored.items():
            self.collected.setdefault(name, []).append(values.cpu())

    def on_test_epoch_end(self) -> None:
        """Measure the final row as test/*, the other rows as test/<row>/*; logged where the trainer has a logger."""
        self.measured = {name: float(value) for row in ROWS for name, value in self.metrics[row].compute().items()}
        if self.trainer.loggers:
            self.log_dict(self.measured)

    def results(self) -> dict[str, Tensor]:
        """What was tested, in the order of the stream: label, index, and the logits of each row."""
        return {name: torch.cat(parts) for name, parts in self.collected.items()}

    def _timed(self, row: str, function: object, *args: Tensor) -> Tensor:
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


class ZeroShotTask(BankTask):
    """Predicts with the aggregator."""

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The aggregator's logits."""
        return aggregated


class FewShotTask(BankTask):
    """Predicts with an adapter that was fitted on the support set and selected on validation images before any test label is here."""

    def __init__(self, scorer: Scorer, adapter: Adapter | EncoderAdapter) -> None:
        super().__init__(scorer)
        self.adapter = adapter
        self.splits: dict[str, list[str]] = {}  # the ids of the support and the validation images, for the record

    def examples(self, views: Float[Tensor, "n views dim"], labels: Int[Tensor, " n"]) -> Examples:
        """Labelled views with the scorer's logits, as adapters take them."""
        return Examples(views, torch.cat([self.scorer(part) for part in views.split(SCORED_AT_ONCE)]), labels)

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The adapter's logits."""
        return self.adapter(views, aggregated)


class TunedTask(FewShotTask):
    """Predicts with the aggregator on views and prompts as a tuned encoder sees them; the other rows are those of the encoder before."""

    def __init__(self, scorer: Scorer, adapter: EncoderAdapter, tuned_text: TextBank, tuned_bank: Bank) -> None:
        super().__init__(scorer, adapter)
        self.tuned_scorer, self.tuned_bank = with_text(scorer, tuned_text), tuned_bank
        self.row_of = {index: row for row, index in enumerate(tuned_bank.positions)}

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Fetch what the tuned encoder saw of the batch, then score it."""
        self.tuned_views = torch.stack([self.tuned_bank[self.row_of[index]][0] for index in batch[2].tolist()])
        super().test_step(batch, batch_idx)

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The aggregator's logits of the tuned views against the tuned prompts."""
        return self.tuned_scorer(self.tuned_views)


class AdaptationTask(BankTask):
    """Predicts with a method that changes with the stream; images are taken one after the other."""

    def __init__(self, scorer: Scorer, method: Method) -> None:
        super().__init__(scorer)
        self.method = method

    def on_test_start(self) -> None:
        """A new stream starts from the unchanged model; one that is resumed, from the state that was saved."""
        if not self.collected:
            self.method.reset()

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The method's logits after it has seen the stream so far."""
        return self.method(views, aggregated)
