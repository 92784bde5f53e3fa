"""Stops: SIGTERM and SIGINT end a run between two batches of a loop, and elsewhere at once, with exit status 143 or 130."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from multicrop.files import redacted

DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class Stopped(SystemExit):
    """The process was asked to stop; its exit status is 128 and the number of the signal, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class _Requests:
    """The signal that came while a loop ran, if any, and whether a loop runs."""

    pending: int | None = None
    in_loop = False

    def take(self, number: int, _: FrameType | None) -> None:
        """A signal handler: note the first signal within a loop for the end of the batch; else stop."""
        if self.in_loop and self.pending is None:
            self.pending = number
        else:
            raise Stopped(number)

    def clear(self) -> None:
        """Forget earlier runs."""
        self.pending, self.in_loop = None, False


_REQUESTS = _Requests()


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """End the block on SIGTERM or SIGINT: within `loop` or `StopBetweenBatches` at the end of the batch, else at once.

    A second signal ends it at once. Claims are released and half-written files removed on the way. The message names the command that
    continues. A signal that is ignored, as SIGINT is in a background job of a script, stays ignored. Where a launcher has handlers of its
    own, or outside the main thread, the block runs as it is.

    Raises:
        Stopped: If a signal came. Whatever else ends the block after a signal, such as workers that got it too, counts as the stop.
    """
    handled = {number: handler for number, handler in DEFAULTS.items() if signal.getsignal(number) != signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread() or any(signal.getsignal(n) != h for n, h in handled.items()):
        yield
        return
    _REQUESTS.clear()
    for number in handled:
        signal.signal(number, _REQUESTS.take)
    try:
        yield
    except BaseException as error:
        number = error.number if isinstance(error, Stopped) else _REQUESTS.pending
        if number is None:
            raise
        _say(number)
        raise Stopped(number) from error
    finally:
        _REQUESTS.clear()
        for number, handler in handled.items():
            signal.signal(number, handler)


@contextmanager
def loop() -> Iterator[Callable[[], None]]:
    """Delay signals to the end of a batch, where the caller calls the yielded function; it stops the loop if a signal has come."""
    enter_loop()
    try:
        yield end_batch
    finally:
        leave_loop()


def enter_loop() -> None:
    """From here on a signal waits for `end_batch`."""
    _REQUESTS.in_loop = True


def leave_loop() -> None:
    """From here on a signal stops the process at once."""
    _REQUESTS.in_loop = False


def end_batch() -> None:
    """Raise Stopped if a signal came since the loop began."""
    if _REQUESTS.pending is not None:
        leave_loop()
        raise Stopped(_REQUESTS.pending)


def local_rank() -> int:
    """The number of this process among those that one trainer started on this machine; 0 for a single process."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _say(number: int) -> None:
    """Print how to continue, in one process of a group."""
    if local_rank() == 0:
        command = redacted(shlex.join([Path(sys.executable).name, *sys.argv]))
        message = f"stopped by {signal.Signals(number).name}; what is finished is kept, and the same command continues there: {command}"
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
