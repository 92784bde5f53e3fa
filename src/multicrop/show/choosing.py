"""What a search for the best setting shows: progress with the best so far, and the answer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from multicrop.show.terminal import console, show_lines


class SearchView:
    """A progress bar in a terminal, and a line per bank of views anywhere.

    Args:
        total: Settings to score.
        live: Whether a bar is shown.
    """

    def __init__(self, total: int, *, live: bool) -> None:
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        columns = TextColumn("settings"), MofNCompleteColumn(), BarColumn(), *times, TextColumn("{task.description}")
        self.progress = Progress(*columns, console=console, disable=not (live and console.is_terminal))
        self.task = self.progress.add_task("", total=total)
        self.best: tuple[float, str] = (-1.0, "")

    def __enter__(self) -> "SearchView":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @contextmanager
    def paused(self, line: str) -> Iterator[None]:
        """Print a line and hide the bar, for the bar of a bank that is filled."""
        self.progress.stop()
        show_lines([line])
        yield
        self.progress.start()

    def advance(self, settings: int, best: str, accuracy: float) -> None:
        """Count scored settings, and note the best of their range."""
        self.best = max(self.best, (accuracy, best))
        self.progress.update(self.task, advance=settings, description=escape(f"best {100 * self.best[0]:.1f} % ({self.best[1]})"))


def choice_table(title: str, rows: Sequence[tuple[str, str, float]], wins: Mapping[str, float]) -> Table:
    """The baseline, the chosen setting and the highest, with their accuracy, and how often each family wins."""
    table = Table(title=escape(title), title_justify="left", caption=escape(_shares(wins)) if wins else None, caption_justify="left")
    for column in ("", "setting", "top-1"):
        table.add_column(column, justify="right" if column == "top-1" else "left", overflow="fold")
    for role, setting, accuracy in rows:
        table.add_row(role, escape(setting), "" if math.isnan(accuracy) else f"{100 * accuracy:.1f}")
    return table


def show_choice(table: Table, lines: Sequence[str]) -> None:
    """Print the table of a choice and its answer in words."""
    console.print(table)
    show_lines(lines)


def _shares(wins: Mapping[str, float]) -> str:
    named = sorted(wins.items(), key=lambda item: -item[1])
    return "chosen in resamples: " + ", ".join(f"{family} {100 * share:.0f} %" for family, share in named if share >= 0.005)
