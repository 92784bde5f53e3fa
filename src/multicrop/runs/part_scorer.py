"""PartScorer: scores the shards of a bank, each into its own file of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multicrop.data.base import LabelledImages
from multicrop.features import ShardFolder
from multicrop.files import PersistentError
from multicrop.record import PartFolder, Predictions
from multicrop.runs.kept_logits import ranks, scores
from multicrop.runs.measures import brier_scores
from multicrop.runs.task import BankTask


@dataclass(frozen=True)
class Known:
    """What is known of the images: ids, labels, and domains and clusters where there are any; those of a table are read on demand."""

    ids: Sequence[str]
    labels: Sequence[int]
    domains: Sequence[str] | None
    clusters: Sequence[str] | None

    @classmethod
    def of(cls, images: LabelledImages) -> "Known":
        """What is known of images."""
        return cls(images.ids, images.labels, images.domains, images.clusters)


@dataclass(frozen=True)
class PartScorer:
    """Scores the shards of a bank with a task in which images are independent, and writes a file of predictions per shard.

    Args:
        task: The task.
        known: The images.
        bank: The bank, which is complete.
        parts: The predictions.
        n_views: Views to read per image.
        batch_size: Images that are scored at once.
        keep: Whether the logits are kept.
    """

    task: BankTask
    known: Known
    bank: ShardFolder
    parts: PartFolder
    n_views: int
    batch_size: int
    keep: bool = False

    def load(self) -> None:
        """Prepare the task."""
        self.task.eval()
        self.task.on_test_start()

    @torch.inference_mode()
    def encode(self, shard: int) -> int:
        """Score one shard; raises PersistentError where the shard is damaged, which the next run encodes again."""
        if (tensors := self.bank.read(shard)) is None:
            self.bank.discard(shard)
            self.bank.reopen()
            raise PersistentError(f"{self.bank.shard(shard)} fails its checksum: the same command encodes it again")
        readable, rows = tensors["readable"].bool(), self.bank.rows(shard)
        places = readable.nonzero().squeeze(1).tolist()
        views = torch.nn.functional.normalize(tensors["views"][readable, : self.n_views].float(), dim=-1)
        labels = torch.tensor(_chosen(self.known.labels, rows, places), dtype=torch.long)
        found = self._logits(views, labels)
        confidence = {row: logits.softmax(1).amax(1).numpy() for row, logits in found.items()}
        brier = {row: brier_scores(logits, labels).numpy() for row, logits in found.items()}
        predictions = self._predictions(rows, places, labels, found)
        self.parts.put(shard, predictions, confidence, brier, unreadable=len(rows) - len(places))
        return len(places)

    def _logits(self, views: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The logits of each row."""
        self.task.collected = {row: [torch.zeros(0, len(self.task.scorer.text.mask))] for row in self.task.rows}
        for number, first in enumerate(range(0, len(views), self.batch_size)):
            batch = slice(first, first + self.batch_size)
            self.task.test_step((views[batch], labels[batch], torch.arange(len(views))[batch]), number)
        found = self.task.results()
        self.task.collected = {}
        return {row: found[row] for row in self.task.rows}

    def _predictions(self, rows: range, places: list[int], labels: Tensor, found: dict[str, Tensor]) -> Predictions:
        known = self.known
        return Predictions(
            _chosen(known.ids, rows, places),
            labels.numpy(),
            {row: logits.argmax(1).numpy() for row, logits in found.items()},
            *(_chosen(values, rows, places) if values else [""] * len(places) for values in (known.domains, known.clusters)),
            ranks={row: ranks(logits, labels).numpy() for row, logits in found.items()},
            scores={row: scores(logits, all_logits=True) for row, logits in found.items() if self.keep and self._own(row)},
        )

    def _own(self, row: str) -> bool:
        """Whether the logits of a row are not those of the final one."""
        return self.task.component is not None or row != "aggregated"


def _chosen(values: Sequence[Any], rows: range, places: list[int]) -> list[Any]:
    """The values of some images of a shard, which are read together."""
    own = values[rows.start : rows.stop]
    return [own[place] for place in places]
