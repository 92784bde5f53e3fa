"""FillLine: the one line that shows how shards are encoded or scored."""

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.live import Live

log = logging.getLogger(__name__)
LINE_SECONDS = 30.0  # between two lines in a log


@runtime_checkable
class Shards(Protocol):
    """What consists of numbered shards, of which some are missing: a bank, or the predictions of a run."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def count(self) -> int:
        """Shards of the whole."""
        ...

    def rows(self, index: int) -> range:
        """The images of one shard."""
        ...

    def missing(self) -> list[int]:
        """The shards that are not there."""
        ...


@dataclass
class FillLine:
    """The line that shows how shards are worked on: live in a terminal, now and then in a log."""

    folder: Shards
    views: int
    show: bool
    done: int = 0
    images: int = 0
    failures: int = 0
    nodes: Counter[str] = field(default_factory=Counter)  # actors that work, by node
    started: float = 0.0  # when the first actor was ready
    verb: str = "encoding"

    def __enter__(self) -> "FillLine":
        self.done, self.shown = self.folder.count - len(self.folder.missing()), time.monotonic()
        self.stack, console = ExitStack(), Console()
        self.live = self.stack.enter_context(Live("", console=console, refresh_per_second=2)) if self.show and console.is_terminal else None
        return self

    def __exit__(self, *error: object) -> None:
        self.tell(last=True)
        self.stack.close()

    def line(self) -> str:
        """Shards done, rate, failures, actors and nodes."""
        seconds = time.monotonic() - self.started if self.started else 0.0
        rate = self.images * self.views / seconds if seconds else 0.0
        counts = f"failed tries {self.failures}, actors {self.nodes.total()}, nodes {len(self.nodes)}"
        return f"{self.verb}: {self.done} of {self.folder.count} shards, {rate:,.0f} views/s, {counts}"

    def tell(self, *, last: bool = False) -> None:
        """Show the line, if it is time to."""
        if self.live is not None:
            self.live.update(self.line())
        elif self.show and (last or time.monotonic() - self.shown > LINE_SECONDS):
            self.shown = time.monotonic()
            log.info("%s", self.line())
