"""Work in forked processes: what it returned or raised, and faults that strike at a time, at a call of the system or at a written byte."""

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 180.0  # seconds; work that takes longer hangs
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime", "os.chmod", "os.link", "os.symlink"))
_KEPT: list[Any] = []  # the streams of the parent, which would close their files when they are collected


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status (negative for a signal), what its work returned, its error and what it printed."""

    status: int
    value: Any = None
    error: str | None = None
    text: str = ""
    seconds: float = 0.0
    calls: int = 0  # on files below the watched folder

    @property
    def hung(self) -> bool:
        """Whether it was killed because it took too long."""
        return self.seconds >= LIMIT


class Strike:
    """Counts the calls that open or change files below some folders, and does something before the call number `at`.

    Args:
        places: The folders.
        at: The number of the call, from 0; None: only count.
        act: What to do; an error that it raises is the outcome of the call.
        calls: ``"all"`` to count all calls, ``"write"`` or ``"read"`` for some.
        name: Count only files whose path holds this.
        once: Whether later calls are spared.
    """

    def __init__(
        self,
        *places: Path,
        at: int | None = None,
        act: Callable[[str, str], None] = print,
        calls: str = "all",
        name: str = "",
        once: bool = True,
    ) -> None:
        self.places, self.at, self.act, self.kind, self.name, self.once = tuple(map(str, places)), at, act, calls, name, once
        self.calls, self.on = 0, False

    def __call__(self, event: str, arguments: tuple) -> None:
        """An audit hook."""
        if not self.on or not (event == "open" or event in CHANGES) or not isinstance(arguments[0], str | os.PathLike):
            return
        path, writes = str(arguments[0]), event != "open" or bool((arguments[2] or 0) & WRITES)
        if not path.startswith(self.places) or self.name not in path or self.kind == ("read" if writes else "write"):
            return
        self.calls += 1
        if self.at is not None and (self.calls == self.at + 1 or (self.calls > self.at and not self.once)):
            self.act(event, path)


@contextlib.contextmanager
def armed(strike: Strike | None):
    """Count and strike within the block."""
    if strike is None:
        yield
        return
    sys.addaudithook(strike)
    strike.on = True
    try:
        yield
    finally:
        strike.on = False


def kill_at_byte(size: int) -> None:
    """Let the system kill this process when it writes beyond so many bytes of any file, whichever library writes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    fail_at_byte(size)


def fail_at_byte(size: int) -> None:
    """Let every write beyond so many bytes of a file fail, as a quota does; what is printed, which lies in a file too, is lost."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@dataclass
class Child:
    """A forked process."""

    pid: int
    scratch: Path
    started: float

    def signal_after(self, seconds: float, number: int) -> None:
        """Send a signal after some time, unless the process ends before."""
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end; one that hangs is killed."""
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - self.started > LIMIT:
                os.kill(self.pid, signal.SIGKILL)
                found = os.waitpid(self.pid, 0)
                break
            time.sleep(0.005)
        seconds = time.monotonic() - self.started
        text = (self.scratch / "text").read_text(errors="replace")
        told = json.loads((self.scratch / "told").read_text() or "{}")
        return Ended(os.waitstatus_to_exitcode(found[1]), text=text, seconds=seconds, **told)


def start(work: Callable[[], Any], scratch: Path, strike: Strike | None = None) -> Child:
    """Fork a process that does some work.

    Args:
        work: Returns plain values.
        scratch: A folder for what it tells; nothing else may use it.
        strike: A fault, which is told `calls`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    told = os.open(scratch / "told", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    text = os.open(scratch / "text", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    sys.stdout.flush()
    if pid := os.fork():
        os.close(told)
        os.close(text)
        return Child(pid, scratch, time.monotonic())
    status = 1
    try:
        status = _work(work, told, text, strike)
    finally:
        os._exit(status)


def _work(work: Callable[[], Any], told: int, text: int, strike: Strike | None) -> int:
    """Do the work in this process; the exit status."""
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)
    os.dup2(text, 1)
    os.dup2(text, 2)
    _KEPT.extend((sys.stdout, sys.stderr))
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    warnings.simplefilter("always", UserWarning)
    value, error, status = None, None, 0
    try:
        with armed(strike):
            value = work()
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException as failure:  # noqa: BLE001 whatever it is, the parent judges it
        error, status = f"{type(failure).__name__}: {failure}", 1
        traceback.print_exc()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    os.write(told, json.dumps({"value": value, "error": error, "calls": strike.calls if strike else 0}).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    return status
