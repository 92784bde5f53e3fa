"""What a run found, as plain values: its metrics, predictions, examples and the picture of explanations."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multicrop.compare.statistics import compare
from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.features import FeatureBank
from multicrop.files import redacted
from multicrop.record import PICTURE, Predictions, training_facts
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.task import BankTask
from multicrop.show import examples
from multicrop.show.explain.scored import ScoredImages

TOP_K = 5


@dataclass(frozen=True)
class Outcome:
    """What a run found."""

    predictions: Predictions
    metrics: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    examples: list[dict]
    picture: Path | None


def outcome_of(
    session: Session, task: BankTask, bank: FeatureBank, environment: dict[str, Any], *, scoring_seconds: float, resumed: int
) -> Outcome:
    """The outcome of a task that was tested; draws the picture of explanations into the run's folder."""
    predictions = task.predictions(bank.images.ids, bank.images.domains, bank.images.clusters)
    metrics = metrics_of(task, bank, predictions, scoring_seconds=scoring_seconds, resumed=resumed)
    scored = scored_images(session, bank, task, predictions)
    picture = draw_explanations(session, bank, scored)
    return Outcome(predictions, metrics, environment, data_of(session, bank.images), keep_examples(session, bank, scored), picture)


def row_metrics(predictions: Predictions, views: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Per row: top-1 and top-5 accuracy, the views that it reads, and its paired difference to the global view."""
    base = predictions.correct("global")
    found = {}
    for row in predictions.rows:
        compared = compare(predictions.correct(row), base, clusters=predictions.cluster)
        own = {"accuracy": predictions.accuracy(row), "top5": predictions.accuracy(row, k=TOP_K), "views": views[row]}
        found[row] = own | asdict(compared)
    return found


def metrics_of(task: BankTask, bank: FeatureBank, predictions: Predictions, *, scoring_seconds: float, resumed: int) -> dict[str, Any]:
    """The numbers of a run, for metrics.json."""
    return {
        "rows": row_metrics(predictions, task.views_read(bank.n_views)),
        "test": task.measured,
        "trust": task.trust,
        "logit_scale": task.scorer.logit_scale,
        "images": len(bank),
        "skipped_images": int((~bank.readable).sum()),
        "views_per_image": bank.n_views,
        "encoder_calls": len(bank) * bank.n_views,
        "bank_reused": bank.reused,
        "crops_per_second": bank.cost.crops_per_second,
        "encode_seconds": bank.cost.seconds,
        "scoring_seconds": scoring_seconds,
        "row_seconds": task.seconds,
        "spared_seconds": task.spared,
        **task.unknown,
        **task.recorded(predictions, n_views=bank.n_views, resumed=resumed),
    }


def data_of(session: Session, images: LabelledImages | StreamedImages) -> dict[str, Any]:
    """What was scored, for those who read the record without the data."""
    dataset, settings = session.dataset, session.settings
    split, names = settings["split"], [dataset.name, settings.choices.get("dataset", "")]
    facts = {"dataset": dataset.name, "split": split, "fingerprint": images.fingerprint, "class_names": dataset.class_names}
    facts |= training_facts(settings.config, split=split, names=names)
    return facts if settings.limit is None else facts | {"limit": settings.limit}


def scored_images(session: Session, bank: FeatureBank, task: BankTask, predictions: Predictions) -> ScoredImages:
    """The scored images as pictures and examples read them."""
    row_of, images = {index: row for row, index in enumerate(bank.positions)}, bank.images
    return ScoredImages(
        predictions=predictions,
        scores=task.results(),
        ids=images.ids,
        fingerprint=images.fingerprint,
        open_image=images.open,
        views=lambda index: bank[row_of[index]][0],
        boxes=bank.boxes,
        scorer=session.scorer,
        class_names=session.dataset.class_names,
    )


def draw_explanations(session: Session, bank: FeatureBank, scored: ScoredImages) -> Path | None:
    """Draw the picture of boxes and transport plans; None where the aggregator has no plan or the images cannot be opened again.

    A picture of an older run in the run's folder is removed.
    """
    path = session.settings.output / PICTURE
    path.unlink(missing_ok=True)
    if not session.settings["pictures"] or not bank.can_reopen:
        return None
    from multicrop.show import pictures  # matplotlib, which runs without pictures do not load

    return pictures.draw_chosen(scored, count=session.settings["pictures"], path=path)


def keep_examples(session: Session, bank: FeatureBank, scored: ScoredImages) -> list[dict]:
    """The rescued, lost and wrong images that the record keeps (``examples`` of them)."""
    return examples.collect(scored, count=session.settings["examples"]) if bank.can_reopen else []


def summary_of(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics that W&B shows for a run, flat."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    final = metrics["rows"]["final"]
    trust = {f"trust/{name}": value for name, value in metrics["trust"]["final"].items()}
    return metrics["test"] | trust | numbers | {f"test/vs_global/{name}": final[name] for name in ("difference", "low", "high", "p_value")}


def logged_config(settings: Settings) -> dict[str, Any]:
    """The configuration that W&B shows, without secrets."""
    return redacted({**settings.config, "choices": settings.choices})
