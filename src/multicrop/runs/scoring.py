"""Scoring: a task goes through the batches of a feature bank, and is saved or stopped between two of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager

import torch
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from multicrop.features import Batch, FeatureBank, loop
from multicrop.runs.stream_saves import StreamSaves
from multicrop.runs.task import BankTask


@torch.inference_mode()
def score(task: BankTask, batches: Iterable[Batch], *, saves: StreamSaves | None = None, progress: bool = False) -> None:
    """Score all batches in inference mode, and measure the rows.

    Args:
        task: The task.
        batches: Views, labels and image indices, in the order in which they are scored.
        saves: Saves the task on the way.
        progress: Whether to show a bar, counted in batches.
    """
    count = len(batches) if isinstance(batches, Sized) else None
    task.eval()
    with loop() as end_batch, _bar(count, shown=progress) as advance:
        task.on_test_start()
        for number, batch in enumerate(batches):
            task.test_step(batch, number)
            advance()
            if saves is not None and count is not None and number + 1 < count:
                saves.after_batch(task)
            end_batch()
        task.measure()


def stream(task: BankTask, bank: FeatureBank, batch_size: int, done: Sequence[int] = ()) -> Iterable[Batch]:
    """Batches of (views, labels, image indices) in the order of the task, after the images that are ``done``, in their order."""
    batch_size = task.batch_size or batch_size
    if not bank.reorderable:
        return bank.batches(batch_size=batch_size)
    rows = task.order(bank) or list(range(len(bank.positions)))
    if done:
        indices = [bank.positions[row] for row in rows]
        place = indices.index(done[-1]) + 1
        bank.mark_unreadable(sorted(set(indices[:place]) - set(done)))  # tried before the kill
        rows = rows[place:]
    return bank.batches(rows, batch_size=batch_size)


@contextmanager
def _bar(count: int | None, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar, and the function that advances it by one batch."""
    with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), disable=not shown) as bar:
        scoring = bar.add_task("Scoring", total=count)
        yield lambda: bar.advance(scoring)
