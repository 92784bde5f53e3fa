"""Few-shot classification: an adapter is fitted on the support set and selected on validation images before any test label is read."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.adapters.base import Adapter, AnyAdapter, EncoderAdapter, Examples
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Scorer, with_text
from multicrop.config.ranges import Count, OneOf
from multicrop.data.base import LabelledImages
from multicrop.data.few_shot import few_shot_from_file, few_shot_split
from multicrop.data.overview import per_class
from multicrop.features import FeatureBank
from multicrop.record import SPLITS, Predictions
from multicrop.runs.identity import FIT_PARTS, TUNING_PARTS, run_identity
from multicrop.runs.session import Session
from multicrop.runs.task import BankTask, task_builder
from multicrop.text import TextBank

log = logging.getLogger(__name__)
SCORED_AT_ONCE = 64  # support images
SHOWN = 6  # classes in a warning
SELECTIONS = ("validation", "fixed")
Selected = Annotated[str, OneOf(SELECTIONS)]
Fitted = TypeVar("Fitted")


class SupportedTask(BankTask):
    """What the tasks with a support set share.

    Args:
        scorer: Class logits of views.
        adapter: The fitted adapter.
        splits: Ids of the support (``train``) and the validation images (``val``), for the record.
    """

    component = "adapter"

    def __init__(self, scorer: Scorer, adapter: AnyAdapter, splits: dict[str, list[str]]) -> None:
        super().__init__(scorer)
        self.adapter, self.splits = adapter, splits
        self.support: dict[str, Any] = {}  # `asked` images per class, and how many there are `per_class`

    def recorded(self, predictions: Predictions, *, n_views: int, resumed: int) -> dict[str, Any]:
        """How the hyper-parameters were chosen, and the number of support images of each class."""
        return {"selection": self.adapter.selection, "support": self.support}

    def files(self, predictions: Predictions) -> dict[str, str]:
        """The ids of the support and the validation images."""
        return {SPLITS: json.dumps(self.splits, indent=1)}


class FewShotTask(SupportedTask):
    """Predicts with a fitted adapter of features."""

    adapter: Adapter

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The adapter's logits."""
        return self.adapter(views, aggregated)


class TunedTask(SupportedTask):
    """Predicts with the aggregator on views and prompts as a tuned encoder sees them; the other rows are those of the encoder before.

    Args:
        scorer: Class logits of views.
        adapter: The fitted adapter.
        splits: Ids of the support and the validation images.
        text: The prompts as the tuned encoder encodes them.
        bank: The scored images as the tuned encoder encodes them.
    """

    def __init__(self, scorer: Scorer, adapter: EncoderAdapter, splits: dict[str, list[str]], text: TextBank, bank: FeatureBank) -> None:
        super().__init__(scorer, adapter, splits)
        self.tuned_scorer, self.tuned_bank = with_text(scorer, text), bank
        self.row_of = {index: row for row, index in enumerate(bank.positions)}

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Fetch the tuned encoder's views of the batch, then score it."""
        self.tuned_views = torch.stack([self.tuned_bank[self.row_of[index]][0] for index in batch[2].tolist()])
        super().test_step(batch, batch_idx)

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The aggregator's logits of the tuned views against the tuned prompts."""
        return self.tuned_scorer(self.tuned_views)


def support_and_validation(
    session: Session, *, shots: int, few_shot_file: str | None, selection: str
) -> tuple[LabelledImages, LabelledImages]:
    """The images that an adapter learns from and is selected on: those of a file, or drawn once per process."""
    dataset, seed = session.dataset, session.settings["seed"]
    if few_shot_file:
        return few_shot_from_file(dataset, few_shot_file)
    key = [session.settings.part("dataset").values, session.settings.part("corruption").values, shots, seed]  # as the data set is shared
    return session.share("support", key, lambda: few_shot_split(dataset, shots=shots, seed=seed))


@task_builder(groups=("adapter",), not_decisive=("few_shot_file",), images=support_and_validation)
def build(session: Session, *, shots: Count, few_shot_file: str | None, selection: Selected = "validation") -> SupportedTask:
    """Draw the support and validation images, fit the adapter that the configuration names, and make the task.

    Args:
        session: The parts of the run.
        shots: Support images per class.
        few_shot_file: A JSON file ``{train: [image id, ...], val: [...]}`` instead of a draw.
        selection: ``"validation"`` chooses the adapter's knobs on validation images, ``"fixed"`` leaves them.

    Raises:
        ValueError: If ``selection`` is neither, or the images do not suffice.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"task.selection is {' or '.join(SELECTIONS)}, got {selection!r}")
    support, validation = support_and_validation(session, shots=shots, few_shot_file=few_shot_file, selection=selection)
    part = session.settings.part("adapter")
    adapter: AnyAdapter = session.inject((part if selection == "validation" else part.without("search")).make())
    counts = per_class(support, session.dataset.class_names)
    _warn_of_few(counts, None if few_shot_file else shots)
    made = _tuned if adapter.tunes_encoder is True else _fitted
    task = made(session, adapter, support, validation)  # type: ignore[arg-type]
    task.support = {"asked": None if few_shot_file else shots, "per_class": counts}
    return task


def _warn_of_few(counts: dict[str, int], shots: int | None) -> None:
    """Log the classes that have fewer support images than asked for."""
    if fewer := {name: count for name, count in counts.items() if shots and count < shots}:
        listed = ", ".join(f"{name} {count}" for name, count in list(fewer.items())[:SHOWN])
        log.warning(
            f"{len(fewer)} of {len(counts)} classes have fewer support images than task.shots={shots}, as training images are few "
            f"or held back for validation: {listed}{', ...' if len(fewer) > SHOWN else ''}; metrics.json has the number of each class"
        )


def _fitted(session: Session, adapter: Adapter, support: LabelledImages, validation: LabelledImages) -> FewShotTask:
    """The task of an adapter that learns on the features of the banks."""
    with torch.no_grad():
        examples = [examples_of(session.scorer, *session.bank(images).tensors()) for images in (support, validation)]
    _fit(session, adapter, partial(adapter.fit, *examples), run_identity(session, *FIT_PARTS).key_of(*FIT_PARTS))
    return FewShotTask(session.scorer, adapter, _splits(support, validation))


def _tuned(session: Session, adapter: EncoderAdapter, support: LabelledImages, validation: LabelledImages) -> TunedTask:
    """The task of an adapter that changes the encoder, which is fitted before it encodes the scored images.

    The fit reads neither crops nor aggregator, so that a sweep over these fits once.
    """
    if session.settings["bank"] == "off":
        raise ValueError("an adapter that changes the encoder has a bank of its own for what the changed one sees; use bank=disk")
    scorer = session.scorer
    key = run_identity(session, *TUNING_PARTS).key_of(*TUNING_PARTS)
    fit = partial(adapter.fit, support, validation)
    adapter, encoder = session.share("tuned", key, lambda: (adapter, _fit(session, adapter, fit, key)), of=session.encoder)
    changed = session.with_encoder(encoder)
    bank = changed.bank(session.scored_images)
    if adapter.checkpoint:
        adapter.checkpoint.unlink(missing_ok=True)
    return TunedTask(scorer, adapter, _splits(support, validation), encoder.encode_prompts(scorer.text.prompts), bank)


def _fit(session: Session, adapter: AnyAdapter, fit: Callable[[], Fitted], key: str) -> Fitted:
    """What the adapter's fit returns; a killed fit is resumed by the next run that fits the same, which the key names."""
    adapter.checkpoint = session.settings.cache / "fits" / f"{key}.ckpt"
    adapter.progress = session.settings.compute.progress
    started = time.perf_counter()
    learned = fit()
    adapter.selection["fit_seconds"] = time.perf_counter() - started
    return learned


def examples_of(scorer: Scorer, views: Float[Tensor, "n views dim"], labels: Int[Tensor, " n"]) -> Examples:
    """Labelled views with the scorer's logits, as adapters take them."""
    return Examples(views, torch.cat([scorer(part) for part in views.split(SCORED_AT_ONCE)]), labels)


def _splits(support: LabelledImages, validation: LabelledImages) -> dict[str, list[str]]:
    return {"train": list(support.ids), "val": list(validation.ids)}
