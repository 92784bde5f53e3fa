"""Test-time adaptation: a method adapts to the stream of test images, in the order that the task asks for."""

import csv
import io
from typing import Annotated, Any

import torch
from torch import nn

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Scorer
from multicrop.config.ranges import Count, OneOf, Seed
from multicrop.features import FeatureBank
from multicrop.methods.base import Method
from multicrop.record import STREAM, Predictions
from multicrop.runs.session import Session
from multicrop.runs.task import BankTask, task_builder

ORDERS = ("shuffled", "sorted_by_class", "by_domain")
Order = Annotated[str, OneOf(ORDERS)]
CURVE_POINTS = 200


class AdaptationTask(BankTask):
    """Predicts with a method that changes with the stream; images are scored one after the other.

    Args:
        scorer: Class logits of views.
        method: The test-time method.
        order: ``"shuffled"``, ``"sorted_by_class"`` or ``"by_domain"``.
        order_seed: Draws the order.
        save_every: Images between saves from which a killed run is resumed; None: no saves.
    """

    component = "method"

    def __init__(
        self, scorer: Scorer, method: Method, *, order: str = "shuffled", order_seed: int = 1, save_every: int | None = None
    ) -> None:
        super().__init__(scorer)
        self.method, self.order_name, self.order_seed, self.save_every = method, order, order_seed, save_every

    @property
    def state(self) -> nn.Module:
        """The method."""
        return self.method

    def order(self, bank: FeatureBank) -> list[int]:
        """The rows of the bank in the order of the stream."""
        return in_order(bank, order=self.order_name, order_seed=self.order_seed)

    def on_test_start(self) -> None:
        """A new stream starts from the unchanged model; a resumed one from the saved state."""
        if not self.collected:
            self.method.reset()

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The method's logits after it has seen the stream so far."""
        return self.method(views, aggregated)

    def recorded(self, predictions: Predictions, *, n_views: int, resumed: int) -> dict[str, Any]:
        """Accuracy of each row on the first and the last tenth of the stream, cost per image, and the size of the state."""
        images = len(predictions)
        tenth = max(1, images // 10)
        correct = {row: predictions.correct(row) for row in self.rows}
        measured = {
            "first_tenth": {row: float(values[:tenth].mean()) for row, values in correct.items()},
            "last_tenth": {row: float(values[-tenth:].mean()) for row, values in correct.items()},
            "ms_per_image": {row: 1000 * seconds / images for row, seconds in self.seconds.items()},
            "encoder_calls_per_image": n_views,
            "state_bytes": self.method.state_bytes,
            "resumed_after_images": resumed,
        }
        return {"stream": measured}

    def files(self, predictions: Predictions) -> dict[str, str]:
        """CSV of accuracy against images seen: of all of them so far, and of the latest tenth of the stream, for each row."""
        images = len(predictions)
        window = max(1, images // 10)
        totals = {row: predictions.correct(row).cumsum() for row in self.rows}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["images", *totals, *(f"{row}_recent" for row in totals)])
        for seen in sorted({round(images * k / CURVE_POINTS) for k in range(1, CURVE_POINTS + 1)} - {0}):
            recent = min(window, seen)
            latest = [(t[seen - 1] - (t[seen - 1 - recent] if seen > recent else 0)) / recent for t in totals.values()]
            writer.writerow([seen, *(f"{float(v):.5f}" for v in [*(t[seen - 1] / seen for t in totals.values()), *latest])])
        return {STREAM: text.getvalue()}


def in_order(bank: FeatureBank, *, order: str, order_seed: int) -> list[int]:
    """The rows of a bank in the order of a stream.

    Args:
        bank: The feature bank.
        order: ``"shuffled"``; ``"sorted_by_class"`` or ``"by_domain"`` (domains in an order drawn from the seed), shuffled within.
        order_seed: Draws the order.

    Raises:
        ValueError: For another order, and for ``"by_domain"`` where the images have no domains.
    """
    images = bank.images
    if order not in ORDERS:
        raise ValueError(f"task.order is one of {', '.join(ORDERS)}, got {order!r}")
    generator = torch.Generator().manual_seed(order_seed)
    labels, positions = bank.labels, bank.positions
    rows = torch.randperm(len(positions), generator=generator).tolist()
    if order == "sorted_by_class":
        rows.sort(key=lambda row: labels[row])
    if order == "by_domain":
        if not images.domains:
            raise ValueError(
                f"task.order=by_domain needs images with domains, and {images.name} has none: use dataset=emoji, or another order"
            )
        domains, names = images.domains, sorted(set(images.domains))
        rank = dict(zip(names, torch.randperm(len(names), generator=generator).tolist(), strict=True))
        rows.sort(key=lambda row: rank[domains[positions[row]]])
    return rows


@task_builder(groups=("method",), not_decisive=("save_every",))
def build(session: Session, *, order: Order, order_seed: Seed, save_every: Count | None) -> AdaptationTask:
    """The task over the parts of a run, with the method that the configuration names."""
    method = session.inject(session.settings.part("method").make())
    return AdaptationTask(session.scorer, method, order=order, order_seed=order_seed, save_every=save_every)
