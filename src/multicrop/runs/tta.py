"""Test-time adaptation: a method adapts to the stream of test images, in the order that the task asks for."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Scorer
from multicrop.config.ranges import Count, Positive, Seed
from multicrop.features import FeatureBank
from multicrop.methods.base import Method
from multicrop.record import STREAM, Predictions
from multicrop.runs.orders import ClassRange, Order, in_order
from multicrop.runs.session import Session
from multicrop.runs.task import BankTask, task_builder

CURVE_POINTS = 200


class AdaptationTask(BankTask):
    """Predicts with a method that changes with the stream; images are scored one after the other.

    Args:
        scorer: Class logits of views.
        method: The test-time method.
        order: The order of the stream, see `orders.in_order`.
        order_seed: Draws the order.
        save_every: Images between saves from which a killed run is resumed; None: no saves.
        gamma: Concentration of a correlated order, see `orders.correlated`.
        images_per_batch: Images that a transductive method adapts together, and of a batch of the orders that have batches.
        classes_per_batch: Fewest and most classes of a batch of few classes, see `orders.few_classes`.
    """

    component = "method"

    def __init__(
        self,
        scorer: Scorer,
        method: Method,
        *,
        order: str = "shuffled",
        order_seed: int = 1,
        save_every: int | None = None,
        gamma: float | int = 0.1,
        images_per_batch: int = 128,
        classes_per_batch: Sequence[int] = (2, 10),
    ) -> None:
        super().__init__(scorer)
        self.method, self.save_every, self.images_per_batch = method, save_every, images_per_batch
        self.batch_size = images_per_batch if method.transductive else None
        self.drawn = {"order": order, "order_seed": order_seed, "gamma": gamma, "classes_per_batch": classes_per_batch}

    @property
    def state(self) -> nn.Module:
        """The method."""
        return self.method

    @property
    def needs_whole_bank(self) -> str | None:
        """None for an episodic method, which is reset before each image."""
        return None if self.method.episodic else super().needs_whole_bank

    def order(self, bank: FeatureBank) -> list[int]:
        """The rows of the bank in the order of the stream."""
        return in_order(bank, images_per_batch=self.images_per_batch, **self.drawn)

    def on_test_start(self) -> None:
        """A new stream starts from the unchanged model; a resumed one from the saved state."""
        if not self.collected:
            self.method.reset()

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The method's logits after it has seen the stream so far."""
        return self.method(views, aggregated)

    def recorded(self, predictions: Predictions, *, n_views: int, resumed: int) -> dict[str, Any]:
        """Accuracy of each row on the first and the last tenth, classes per batch, cost per image, and the size of the state."""
        images = len(predictions)
        tenth = max(1, images // 10)
        correct = {row: predictions.correct(row) for row in self.rows}
        measured = {
            "first_tenth": {row: float(values[:tenth].mean()) for row, values in correct.items()},
            "last_tenth": {row: float(values[-tenth:].mean()) for row, values in correct.items()},
            "classes_per_batch": classes_in_batches(predictions.label, self.images_per_batch),
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
        correct = {row: predictions.correct(row) for row in self.rows}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["images", *correct, *(f"{row}_recent" for row in correct)])
        for seen in sorted({round(images * k / CURVE_POINTS) for k in range(1, CURVE_POINTS + 1)} - {0}):
            so_far = [values[:seen].mean() for values in correct.values()]
            latest = [values[max(0, seen - window) : seen].mean() for values in correct.values()]
            writer.writerow([seen, *(f"{value:.5f}" for value in [*so_far, *latest])])
        return {STREAM: text.getvalue()}


def classes_in_batches(labels: np.ndarray, images_per_batch: int) -> float:
    """The mean number of classes in consecutive batches of a stream."""
    starts = range(0, len(labels), images_per_batch)
    return float(np.mean([len(np.unique(labels[first : first + images_per_batch])) for first in starts]))


@task_builder(groups=("method",), not_decisive=("save_every",))
def build(
    session: Session,
    *,
    order: Order,
    order_seed: Seed,
    save_every: Count | None,
    gamma: Positive,
    images_per_batch: Count,
    classes_per_batch: ClassRange,
) -> AdaptationTask:
    """The task over the parts of a run, with the method that the configuration names."""
    method = session.inject(session.settings.part("method").make())
    knobs = {"gamma": gamma, "images_per_batch": images_per_batch, "classes_per_batch": classes_per_batch}
    return AdaptationTask(session.scorer, method, order=order, order_seed=order_seed, save_every=save_every, **knobs)
