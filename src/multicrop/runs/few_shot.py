"""Few-shot classification: an adapter is fitted on the support set and selected on validation images before any test label is read."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.adapters.base import Adapter, AnyAdapter, EncoderAdapter, Examples
from multicrop.adapters.unprojected import unprojected
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Scorer, with_text
from multicrop.config.ranges import Count, OneOf
from multicrop.data.base import LabelledImages
from multicrop.data.overview import per_class
from multicrop.features import FeatureBank
from multicrop.record import SPLITS
from multicrop.runs.identity import FIT_PARTS, TUNING_PARTS, run_identity
from multicrop.runs.session import Session
from multicrop.runs.source import Source
from multicrop.runs.support import Draw, support_and_validation, warn_of_few
from multicrop.runs.task import BankTask, task_builder
from multicrop.runs.transfer import class_rows, source_session, transferred
from multicrop.text import TextBank

SCORED_AT_ONCE = 64  # support images
SELECTIONS = ("validation", "fixed")
Selected = Annotated[str, OneOf(SELECTIONS)]
Fitted = TypeVar("Fitted")


class SupportedTask(BankTask):
    """What the tasks with a support set share.

    Args:
        scorer: Class logits of views.
        adapter: The fitted adapter.
        splits: Ids of the support (``train``) and the validation images (``val``), for the record.
        bank: The scored images as another encoder sees them, if the adapter reads those.
    """

    component = "adapter"

    def __init__(self, scorer: Scorer, adapter: AnyAdapter, splits: dict[str, list[str]], bank: FeatureBank | None = None) -> None:
        super().__init__(scorer)
        self.adapter, self.splits = adapter, splits
        self.bank_of: Callable[[LabelledImages], FeatureBank] | None = None  # the bank of other images
        self._see(bank)
        self.support: dict[str, Any] = {}  # `asked` images per class, how many there are `per_class`, and the data set that they are `of`

    def _see(self, bank: FeatureBank | None) -> None:
        self.bank, self.row_of = bank, {} if bank is None else {index: row for row, index in enumerate(bank.positions)}

    def read(self, images: LabelledImages) -> None:
        """Open the bank of these images as the other encoder sees them."""
        self._see(self.bank_of(images) if self.bank_of else None)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Fetch the other encoder's views of the batch, then score it."""
        if (bank := self.bank) is not None:
            self.other_views = torch.stack([bank[self.row_of[index]][0] for index in batch[2].tolist()])
        super().test_step(batch, batch_idx)

    def fitted(self) -> dict[str, Any]:
        """How the hyper-parameters were chosen, and the number of support images of each class."""
        return {"selection": self.adapter.selection, "support": self.support}

    def fitted_files(self) -> dict[str, str]:
        """The ids of the support and the validation images."""
        return {SPLITS: json.dumps(self.splits, indent=1)}


class FewShotTask(SupportedTask):
    """Predicts with a fitted adapter of features."""

    adapter: Adapter

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The adapter's logits."""
        return self.adapter(views if self.bank is None else self.other_views, aggregated)


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
        super().__init__(scorer, adapter, splits, bank)
        self.tuned_scorer = with_text(scorer, text)

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The aggregator's logits of the tuned views against the tuned prompts."""
        return self.tuned_scorer(self.other_views)


@task_builder(groups=("adapter",), not_decisive=("few_shot_file", "source", "source_knobs"), images=support_and_validation)
def build(
    session: Session,
    *,
    shots: Count,
    few_shot_file: str | None,
    draw: Draw = "nested",
    selection: Selected = "validation",
    source: Source = None,
    source_knobs: Mapping[str, Any] | None = None,
) -> SupportedTask:
    """Draw the support and validation images, fit the adapter that the configuration names, and make the task.

    Args:
        session: The parts of the run.
        shots: Support images per class.
        few_shot_file: A file that names the images instead of a draw, see `few_shot_from_file`.
        draw: ``"nested"`` draws by class, so that few shots are part of more; ``"coop"`` repeats CoOp's draw.
        selection: ``"validation"`` chooses the adapter's knobs on validation images, ``"fixed"`` leaves them.
        source: What is learned from: None for the scored classes, ``"base"`` or ``"new"`` for a half, or the values of another data set.
        source_knobs: Knobs of that data set, which are in its values.

    Returns:
        The task, with its adapter fitted.

    Raises:
        ValueError: If ``selection`` is neither, the images do not suffice, or the adapter has no row for a scored class.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"task.selection is {' or '.join(SELECTIONS)}, got {selection!r}")
    origin = source_session(session, source)
    images = support_and_validation(origin, shots=shots, few_shot_file=few_shot_file, draw=draw)
    part = session.settings.part("adapter")
    part = part if selection == "validation" else part.without("search")
    adapter: AnyAdapter = origin.inject(part.make())
    counts = per_class(images[0], origin.dataset.class_names)
    warn_of_few(counts, None if few_shot_file else shots)
    if adapter.reads_other_features and (session.settings["bank"] == "off" or session.settings.task.get("by_shard")):
        raise ValueError(f"{type(adapter).__name__} has a bank of its own for another encoder; use bank=disk and task.by_shard=false")
    if adapter.tunes_encoder is True:
        task: SupportedTask = _tuned(session, origin, adapter, *images)
    else:
        adapter = _fitted(origin, adapter, *images, shared=source is not None)
        adapter = adapter if origin is session else transferred(adapter, part, origin, session)
        bank_of = _before_projection(session).bank if adapter.reads_unprojected else None
        task = FewShotTask(session.scorer, adapter, _splits(*images), bank_of(session.scored_images) if bank_of else None)
        task.bank_of = bank_of
    task.support = {"asked": None if few_shot_file else shots, "per_class": counts}
    task.support |= {} if source is None else {"of": origin.dataset.name}
    return task


def _fitted(session: Session, adapter: Adapter, support: LabelledImages, validation: LabelledImages, *, shared: bool) -> Adapter:
    """The adapter after its fit on the features of the banks; a sweep over the classes that are scored fits once."""
    key = run_identity(session, *FIT_PARTS).key_of(*FIT_PARTS)

    def fitted() -> Adapter:
        with torch.no_grad():
            examples = [_examples(session, images, before_projection=adapter.reads_unprojected) for images in (support, validation)]
        _fit(session, adapter, partial(adapter.fit, *examples), key)
        return adapter

    return session.share("fitted", key, fitted) if shared else fitted()


def _tuned(session: Session, origin: Session, adapter: EncoderAdapter, support: LabelledImages, validation: LabelledImages) -> TunedTask:
    """The task of an adapter that changes the encoder, which is fitted before it encodes the scored images.

    The fit reads neither crops nor aggregator nor scored classes, so that a sweep over these fits once.
    """
    scorer = session.scorer
    key = run_identity(origin, *TUNING_PARTS).key_of(*TUNING_PARTS)
    fit = partial(adapter.fit, support, validation)
    adapter, encoder = session.share("tuned", key, lambda: (adapter, _fit(session, adapter, fit, key)), of=session.encoder)
    changed = session.with_encoder(encoder)
    bank = changed.bank(session.scored_images)
    if adapter.checkpoint:
        adapter.checkpoint.unlink(missing_ok=True)
    text = adapter.encode_prompts(encoder, scorer.text.prompts, class_rows(origin.dataset, session.dataset))
    task = TunedTask(scorer, adapter, _splits(support, validation), text, bank)
    task.bank_of = changed.bank
    return task


def _fit(session: Session, adapter: AnyAdapter, fit: Callable[[], Fitted], key: str) -> Fitted:
    """What the adapter's fit returns; a killed fit is resumed by the next run that fits the same, which the key names."""
    adapter.checkpoint = session.settings.cache / "fits" / f"{key}.ckpt"
    adapter.progress = session.settings.compute.progress
    started = time.perf_counter()
    learned = fit()
    adapter.selection["fit_seconds"] = time.perf_counter() - started
    return learned


def _before_projection(session: Session) -> Session:
    """The session whose views are those before the visual projection."""
    encoder = session.encoder
    return session.with_encoder(session.share("unprojected", session.facts.key, lambda: unprojected(encoder), of=encoder))


def _examples(session: Session, images: LabelledImages, *, before_projection: bool) -> Examples:
    """Labelled views with the scorer's logits, and the views before the visual projection in place of the others where asked."""
    examples = examples_of(session.scorer, *session.bank(images).tensors())
    return replace(examples, views=_before_projection(session).bank(images).tensors()[0]) if before_projection else examples


def examples_of(scorer: Scorer, views: Float[Tensor, "n views dim"], labels: Int[Tensor, " n"]) -> Examples:
    """Labelled views with the scorer's logits, as adapters take them."""
    return Examples(views, torch.cat([scorer(part) for part in views.split(SCORED_AT_ONCE)]), labels)


def _splits(support: LabelledImages, validation: LabelledImages) -> dict[str, list[str]]:
    return {"train": list(support.ids), "val": list(validation.ids)}
