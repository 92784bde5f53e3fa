"""task=score, or task.by_shard=true: each shard of a bank has its own file of predictions; memory does not grow with the images."""

import logging
import time
from dataclasses import asdict
from typing import Any

from hydra.utils import instantiate

from multicrop.compare.parts import compare_parts
from multicrop.compare.statistics import compare_counts
from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.features import ShardFolder, count_views
from multicrop.files import Identity, content_hash, make_folder
from multicrop.record import PREDICTIONS, PartFolder, RemotePartFolder, Sums, write_record
from multicrop.runs.environment import environment
from multicrop.runs.fill import fill
from multicrop.runs.identity import model_facts, run_identity
from multicrop.runs.part_scorer import Known, PartScorer
from multicrop.runs.results import data_of
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.runs.task import BankTask
from multicrop.show import terminal

log = logging.getLogger(__name__)


def evaluate(settings: Settings, cache: SweepCache | None = None) -> float:
    """Fill the bank of the scored images, score it shard by shard, and write the record with one file of predictions per shard.

    Parts that an earlier process of the same run wrote are kept.

    Args:
        settings: The configuration.
        cache: What this run shares with others in the process.

    Returns:
        The accuracy of the final row, from 0 to 1.

    Raises:
        ValueError: If the images are a stream, features are not stored, or the task learns from the stream.
    """
    started = time.perf_counter()
    make_folder(settings.output, "paths.output")
    session = Session(settings, cache)
    task: BankTask = instantiate(settings.task["build"])(session, **settings.task_knobs)
    task.show_beside(session.beside)
    images, compute = checked(session.scored_images, task, settings), settings.compute
    filled = fill(session, images)
    bank, reused = filled.folder, filled.reused
    identity, ready = run_identity(session), time.perf_counter()
    parts = _parts(settings, identity, bank)
    scorer = PartScorer(task, Known.of(images), bank, parts, count_views(session.sampler), compute.batch_size, settings.all_logits)
    settings.engine.each(scorer, parts, views=scorer.n_views, progress=compute.progress)
    sums = parts.total()
    _report(images, sums, settings["on_unreadable"])
    metrics = metrics_of(scorer, sums, len(session.dataset.class_names))
    metrics |= task.fitted() | _costs(bank, reused) | {"scoring_seconds": time.perf_counter() - ready}
    facts = environment(seed=settings["seed"], seconds=time.perf_counter() - started) | {"choices": settings.choices}
    _write(session, images, parts, metrics, {"environment": facts, "identity": identity, "files": task.fitted_files()})
    _show(session, task, metrics, facts)
    return metrics["rows"]["final"]["accuracy"]


def checked(images: LabelledImages | StreamedImages, task: BankTask, settings: Settings) -> LabelledImages:
    """The images; raises ValueError for what cannot be scored shard by shard."""
    asked, whole = ("task.by_shard=true", "task.by_shard=false") if "by_shard" in settings.task else ("task=score", "task=zero_shot")
    if images.indexed is not True or settings["bank"] != "disk" or settings.compute.devices > 1:
        raise ValueError(
            f"{asked} reads the shards of a bank: use bank=disk, dataset.streaming=false, and engine=ray in place of trainer.devices"
        )
    if settings.config.get("ood") is not None:
        raise ValueError(f"{asked} keeps sums of predictions alone, and images of unknown classes need all scores: use {whole}")
    if (reason := task.needs_whole_bank) is not None:
        raise ValueError(f"{asked} treats each image independently of the others, and this task cannot: {reason}. Use {whole}")
    return images


def _parts(settings: Settings, identity: Identity, bank: ShardFolder) -> PartFolder:
    """The predictions of the run, of which an earlier process may have written some."""
    path = settings.output.absolute() / PREDICTIONS
    if path.is_file():  # of an earlier run in this folder
        path.unlink()
    make_folder(path, "paths.output")
    key = content_hash(identity.key, bank.key, settings.compute.batch_size, settings.all_logits)
    if (place := settings.record_place) is not None:
        return RemotePartFolder(path, key, bank.images, bank.size, objects=place.below(PREDICTIONS))
    return PartFolder(path, key, bank.images, bank.size)


def _report(images: LabelledImages, sums: Sums, on_unreadable: str) -> None:
    """Log how many images could not be read; raises ValueError if none could, or one could not and ``on_unreadable=raise``."""
    message = f"{sums.unreadable} of {len(images)} images of {images.name} cannot be read and are skipped"
    if not sums.images or (sums.unreadable and on_unreadable == "raise"):
        raise ValueError(f"{message}; repair or remove them, or pass on_unreadable=skip (task=zero_shot names them)")
    if sums.unreadable:
        log.warning(message)


def _write(session: Session, images: LabelledImages, parts: PartFolder, metrics: dict[str, Any], known: dict[str, Any]) -> None:
    """Write the record; `known` has the environment, the identity and files of the task."""
    known |= {"data": data_of(session, images), "model": model_facts(session.facts)}
    write_record(session.settings.output, config=session.settings.config, metrics=metrics, predictions=parts, **known)


def _show(session: Session, task: BankTask, metrics: dict[str, Any], facts: dict[str, Any]) -> None:
    """Print the table of the run."""
    settings = session.settings
    labels = terminal.row_labels(settings.choices, task.component, metrics["views_per_image"], list(settings.beside))
    size = f"{metrics['images']:,} images in {metrics['parts']:,} parts"
    title = f"{settings.task['name']} on {session.dataset.name} ({settings['split']}): {size}, top-1 %"
    terminal.show_run(title, labels, metrics, facts, settings.output, None)


def metrics_of(scorer: PartScorer, sums: Sums, classes: int) -> dict[str, Any]:
    """The numbers of a run from the sums of its parts."""
    task, n_views = scorer.task, scorer.n_views
    rows, test, views, confusions = {}, {}, task.views_read(n_views), scorer.parts.confusions(list(sums.rows), classes)
    for row, own in sums.rows.items():
        measured = own.measures(sums.images)
        rows[row] = {"accuracy": measured["accuracy"], "top5": measured.pop("top5"), "views": views[row]}
        compared = compare_parts(scorer.parts, scorer.parts, row=row, baseline_row="global") if scorer.known.clusters else None
        rows[row] |= asdict(compared or compare_counts(own.rescued, own.lost, sums.images))
        measured["class_accuracy"] = confusions[row].class_accuracy()
        test |= {f"test/{name}" if row == "final" else f"test/{row}/{name}": value for name, value in measured.items()}
    counts = {"images": sums.images, "skipped_images": sums.unreadable, "views_per_image": n_views, "parts": scorer.parts.count}
    calls = {"encoder_calls": sums.images * n_views, "row_seconds": task.seconds, "spared_seconds": task.spared}
    return {"rows": rows, "test": test, **counts, **calls}


def _costs(bank: ShardFolder, reused: bool) -> dict[str, Any]:
    """What it cost to fill the bank."""
    facts = bank.manifest() or {}
    return {"bank_reused": reused, "crops_per_second": facts["crops_per_second"], "encode_seconds": facts["seconds"]}
