"""The logger of a run, which the group `logger` names: W&B, or another of Lightning's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hydra.errors import InstantiationException

from multicrop.compare.details import class_table
from multicrop.runs import results
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.show import wandb_logger

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger  # loaded where a logger is made: its import takes seconds


@contextmanager
def logger_of(settings: Settings) -> "Iterator[Logger | None]":
    """The logger that the configuration names, which ends with the run; None for ``logger=none``.

    Raises:
        ValueError: If the logger needs a package that is not installed.
    """
    logger, status = _made(settings) if settings["logger"] else None, "failed"
    if logger:
        logger.log_hyperparams(results.logged_config(settings))  # at the start, so that a run that is killed has it too
    try:
        yield logger
        status = "success"
    finally:
        wandb_logger.finish(logger)
        if logger:
            logger.finalize(status)


def log_outcome(logger: "Logger", session: Session, outcome: results.Outcome) -> None:
    """Mirror the record in the logger: all numbers; in W&B also classes, pictures and the files of the record."""
    from lightning.pytorch.loggers import WandbLogger

    summary = results.summary_of(outcome.metrics)
    if not isinstance(logger, WandbLogger):
        logger.log_metrics(summary, step=0)
        return
    logger.log_metrics(outcome.metrics["test"], step=0)
    wandb_logger.log_run(
        logger,
        summary=summary,
        classes=class_table(outcome.predictions, session.dataset.class_names),
        examples=outcome.examples,
        record=session.settings.output,
        picture=outcome.picture,
    )


def _made(settings: Settings) -> "Logger":
    try:
        return settings.part("logger").make()
    except InstantiationException as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            name = settings.choices.get("logger", "...")
            raise ValueError(
                f"logger={name} needs a package that is not installed: pip install 'multicrop[{name}]', or write logger=csv or logger=none"
            ) from error
        raise
