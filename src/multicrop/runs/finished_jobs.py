"""Jobs of a sweep whose runs are finished, found before Hydra starts them: to start a job takes longer than to look for its record."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from omegaconf import DictConfig

from multicrop.config import threads_of_job
from multicrop.files import as_yaml, write_text
from multicrop.record import Record
from multicrop.runs import experiment, finished_runs
from multicrop.runs.job_folder import clear_failure
from multicrop.runs.session import Session
from multicrop.runs.settings import outputs_of, settings_from, values_of
from multicrop.runs.sweep import views_stopped_by_signals
from multicrop.runs.sweep_cache import process_cache

ENTRY = f"{experiment.__name__}.{experiment.evaluate.__name__}"  # the entry that finds finished runs


def finished_record(cfg: DictConfig, choices: Mapping[str, str], folder: Path) -> Record | None:
    """The record of a job's run, by the same identity as in the job itself.

    Args:
        cfg: The job's configuration, without Hydra's part.
        choices: The option of each config group.
        folder: The job's folder.

    Returns:
        The record; None where the run is not finished, or its identity cannot be computed: the job is started and reports the error.
    """
    with views_stopped_by_signals(), suppress(Exception):  # the job that is started meets an error too, and reports it
        if cfg.task.run._target_ != ENTRY or not finished_runs.any_below(outputs_of(cfg)):
            return None
        torch.set_num_threads(cfg.trainer.threads or threads_of_job(torch.get_num_threads()))
        settings = settings_from(values_of(cfg), choices=dict(choices), output=folder, in_sweep=True)
        return experiment.finished(Session(settings, process_cache()))
    return None


def skip(record: Record, folder: Path, overrides: Sequence[str]) -> float:
    """Leave what a skipped job leaves in its folder: its overrides, and the pointer to the record.

    Returns:
        The accuracy of the record.
    """
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    write_text(folder / ".hydra" / "overrides.yaml", as_yaml(list(overrides)))
    clear_failure(folder)
    return finished_runs.skip(folder, record)
