"""The entries of the application: run one experiment from data to record, or fill feature banks ahead of experiments."""

import random
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from multicrop.compare.published import published_figures
from multicrop.config import check_parts, check_values, threads_of_job
from multicrop.data.base import LabelledImages, StreamedImages
from multicrop.data.limit import limited
from multicrop.data.overview import overview
from multicrop.features import FeatureBank, check_storage, count_views, local_rank
from multicrop.files import Identity, make_folder
from multicrop.record import UNKNOWN, Record, check_free, put_record, training_words, write_record
from multicrop.runs import finished_runs, results, score_parts
from multicrop.runs.environment import environment
from multicrop.runs.fill import fill_and_verify
from multicrop.runs.identity import model_facts, run_identity
from multicrop.runs.images import split_of
from multicrop.runs.loggers import log_outcome, logger_of
from multicrop.runs.scoring import score, stream
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings, settings_of
from multicrop.runs.stream_saves import StreamSaves, saves_of
from multicrop.runs.sweep_cache import SweepCache
from multicrop.runs.task import BankTask
from multicrop.runs.unknown import score_unknown
from multicrop.runs.unreadable import report_unreadable
from multicrop.show import terminal

SPLITS = ("train", "validation", "test")


def run(cfg: DictConfig, cache: SweepCache | None = None) -> float:
    """Do what the task says.

    Args:
        cfg: The composed configuration.
        cache: What this run shares with others in the process, such as the jobs of a sweep.

    Returns:
        The number that a sweep compares, for most tasks the accuracy from 0 to 1.

    Raises:
        ValueError: If a knob has a value of another type or out of its range, or something that the run reads cannot be used.
    """
    check_values(cfg)
    torch.set_num_threads(cfg.trainer.threads or threads_of_job(torch.get_num_threads()))
    warnings.filterwarnings("ignore", module="lightning")  # notes on loaders and deprecations, for Lightning's developers
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(cfg.seed)
    settings = settings_of(cfg)
    check_parts(cfg, settings.choices)
    entry: Callable[[Settings, SweepCache | None], float] = instantiate(settings.task["run"])
    if (place := settings.record_place) is None:
        return entry(settings, cache)
    check_free(place)
    found = entry(settings, cache)
    if local_rank() == 0 and put_record(settings.output, place):
        terminal.show_lines([f"record: {place.url}"])
    return found


def evaluate(settings: Settings, cache: SweepCache | None = None, build: Callable[[Session], BankTask] | None = None) -> float:
    """Run one task on the feature bank of the scored images, write its record, and print its table.

    Args:
        settings: The configuration.
        cache: What this run shares with others in the process.
        build: Makes the task of the parts of the run; None: the builder that the configuration names.

    Returns:
        The accuracy of the final row, from 0 to 1.

    Raises:
        ValueError: If the trainer has several devices.
    """
    if settings.task.get("by_shard"):
        return score_parts.evaluate(settings, cache)
    started = time.perf_counter()
    session = _opened(settings, cache)
    identity = run_identity(session)
    if settings.in_sweep and not settings["rerun"] and (record := finished_runs.find(settings.outputs, identity.key)) is not None:
        return finished_runs.skip(settings.output, record)
    task = _task_of(session, build)
    bank = session.bank(session.scored_images)
    saves = saves_of(settings, task, bank, identity.key)
    with logger_of(settings) as logger:
        seconds = _score(task, bank, settings, saves)
        report_unreadable(bank, settings["on_unreadable"])
        task.unknown = score_unknown(session, task, bank.images)
        facts = environment(seed=settings["seed"], seconds=time.perf_counter() - started) | {"choices": settings.choices}
        outcome = results.outcome_of(session, task, bank, facts, scoring_seconds=seconds, resumed=saves.resumed)
        _write(session, task, outcome, identity)
        finished_runs.enter(settings.outputs, identity.key, settings.output)
        saves.remove()
        if logger:
            log_outcome(logger, session, outcome)
    _show(session, task, bank, outcome)
    return outcome.predictions.accuracy()


def _opened(settings: Settings, cache: SweepCache | None) -> Session:
    """The parts of a run, once its folder is made and its data set is printed; raises ValueError for several devices."""
    make_folder(settings.output, "paths.output")
    if settings.compute.devices > 1:
        raise ValueError(
            "several devices fill banks, one process scores them: python run.py task=encode trainer.devices=N ..., "
            "then this with trainer.devices=1"
        )
    session = Session(settings, cache)
    _show_data(session)
    return session


def _task_of(session: Session, build: Callable[[Session], BankTask] | None) -> BankTask:
    """The task with the rows of the further aggregators."""
    settings = session.settings
    task = build(session) if build else instantiate(settings.task["build"])(session, **settings.task_knobs)
    task.show_beside(session.beside)
    task.all_logits = settings.all_logits
    return task


def encode(settings: Settings, cache: SweepCache | None = None) -> float:
    """Fill the feature banks of the named splits ahead of experiments, on all devices of the trainer.

    Returns:
        The number of images encoded or found.
    """
    if settings.compute.devices > 1 and settings.in_sweep:
        raise ValueError(
            "trainer.devices above 1 starts processes of its own, which would each run the sweep again. Leave -m out and fill one bank a "
            "command, or let jobs of one device share a bank: python run.py -m hydra/launcher=submitit_slurm task=encode seed=1,2,3,4"
        )
    make_folder(settings.output, "paths.output")
    session, found = Session(settings, cache), 0
    if local_rank() == 0:
        _show_data(session)
    for images in [split_of(session.dataset, split, among=SPLITS) for split in settings.task["splits"]]:  # all before one is encoded
        found += _encoded(session, limited(images, settings.limit))
    return float(found)


def _encoded(session: Session, images: LabelledImages | StreamedImages) -> int:
    """The number of images of a bank that is filled; the bank of all images of a split is not opened, since it may be large."""
    if images.indexed is True and images.parent is None and session.settings["bank"] == "disk":
        check_storage(images, storage="disk", cut=session.settings.compute.cut)
        bank, count = fill_and_verify(session, images)
        views, rate = count_views(session.sampler), bank.crops_per_second
    else:
        opened = session.bank(images)
        count, views, rate = len(opened), opened.n_views, None if opened.reused else opened.cost.crops_per_second
    if local_rank() == 0:
        terminal.show_encoded(images.name, count, views, rate)
    return count


def _show_data(session: Session) -> None:
    """Print class names and images per class; once for the jobs of a sweep that share a data set."""
    dataset, settings = session.dataset, session.settings

    def shown() -> list[str]:
        terminal.show_lines(lines := overview(dataset))
        return lines

    of_data = [settings.part(group).values for group in ("dataset", "corruption")]
    session.share("overview", [*of_data, settings.config.get("classes")], shown)


def finished(session: Session) -> Record | None:
    """The record of a finished run of the same identity, where a sweep may skip the run."""
    settings = session.settings
    if settings["rerun"] or settings.compute.devices > 1:
        return None
    check_parts(settings.config, settings.choices)
    _show_data(session)
    return finished_runs.find(settings.outputs, run_identity(session).key)


def _score(task: BankTask, bank: FeatureBank, settings: Settings, saves: StreamSaves) -> float:
    """Score the bank, after what an earlier process scored; returns the seconds that it took."""
    started = time.perf_counter()
    score(task, stream(task, bank, settings.compute.batch_size, saves.resume(task)), saves=saves, progress=settings.compute.progress)
    return time.perf_counter() - started


def _write(session: Session, task: BankTask, outcome: results.Outcome, identity: Identity) -> None:
    """Write the record."""
    write_record(
        session.settings.output,
        config=session.settings.config,
        metrics=outcome.metrics,
        predictions=outcome.predictions,
        environment=outcome.environment,
        data=outcome.data,
        examples=outcome.examples,
        files={**task.files(outcome.predictions), **({UNKNOWN: task.detection.packed()} if task.detection else {})},
        identity=identity,
        model=model_facts(session.facts),
    )


def _show(session: Session, task: BankTask, bank: FeatureBank, outcome: results.Outcome) -> None:
    """Print the table of the run, its cost, and where its record is."""
    settings, dataset = session.settings, session.dataset
    size = f"{len(bank)} images, {len(dataset.class_names)} classes"
    limit = "" if settings.limit is None else f", limit={settings.limit}"
    title = f"{settings.task['name']} on {dataset.name} ({settings['split']}{limit}): {size}, top-1 %"
    labels = terminal.row_labels(settings.choices, task.component, bank.n_views, list(settings.beside))
    terminal.show_run(title, labels, outcome.metrics, outcome.environment, settings.output, outcome.picture)
    terminal.show_lines(list(filter(None, [training_words(outcome.data, session.facts.name)])))
    chosen = settings.choices
    terminal.show_published(published_figures(chosen.get("experiment"), chosen.get("dataset", ""), chosen.get("model", "")))
