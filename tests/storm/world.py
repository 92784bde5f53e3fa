"""What faults strike: fresh places, sweeps that ended undisturbed, and sweeps that were killed half-way, each made once and copied."""

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storm.children import Ended, Strike, start
from storm.inputs import make_inputs
from storm.runs import SWEEPS, Place, Plan, content_of, sweep_of, warm

SAME, REFUSED, WRONG = VERDICTS = ("same result", "refused by name", "WRONG")
HALVES = {"bank": "shard-", "few-shot fit": ".ckpt", "stream": "state.sealed"}  # sweeps that leave something to go on from, and where
SECOND_SAVE = 7  # per file written: it is opened, renamed, and its leftover removed; this is before the third file is renamed


@dataclass(frozen=True)
class Outcome:
    """What became of a fault: the kind of file or run that it struck, how, the verdict, and what was seen."""

    on: str
    how: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True)
class Reference:
    """An undisturbed sweep: the result of each job, its seconds, and its calls of the system."""

    results: list[Any]
    seconds: float
    calls: int


def kill(*_: str) -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class World:
    """A folder with the inputs and everything that is made once.

    Args:
        top: An empty folder.
    """

    top: Path
    made: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.inputs = make_inputs(self.top / "inputs")
        warm(self.inputs)

    @contextmanager
    def place(self, state: str | None = None) -> Iterator[Place]:
        """A new place, empty or with a copy of a state; removed at the end."""
        self.count += 1
        made = Place(self.inputs, self.top / f"fault-{self.count}")
        if state:
            shutil.copytree(self.state(state), made.folder, copy_function=shutil.copy)
        else:
            made.folder.mkdir()
        try:
            yield made
        finally:
            shutil.rmtree(made.folder, ignore_errors=True)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Something that is made when first asked for."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def reference(self, kind: str) -> Reference:
        """The undisturbed sweep of a kind."""
        return self.once(f"reference {kind}", lambda: self._reference(kind))

    def _reference(self, kind: str) -> Reference:
        with self.place() as place:
            ended = start(sweep_of(place, Plan(SWEEPS[kind])), place.scratch, Strike(place.cache, place.outputs)).wait()
        results = [job.get("result") for job in whole(ended)]
        return Reference(results, ended.seconds, ended.calls)

    def state(self, name: str) -> Path:
        """The folder of a state: ``finished KIND`` has been run twice, into two folders; ``half KIND`` was killed after two saves."""
        return self.once(name, lambda: self._state(name))

    def _state(self, name: str) -> Path:
        condition, kind = name.split(" ", 1)
        place = Place(self.inputs, self.top / name.replace(" ", "-"))
        if condition == "half":
            strike = Strike(place.folder, at=SECOND_SAVE, act=kill, name=HALVES[kind])
            ended = start(sweep_of(place, Plan(SWEEPS[kind])), place.scratch, strike).wait()
            if ended.status != -signal.SIGKILL:
                raise RuntimeError(f"{name}: the sweep was to be killed after two saves, and ended with {ended.status}: {ended.text}")
            return place.folder
        for folder in ("sweep-1", "sweep-2"):
            whole(start(sweep_of(place, Plan(SWEEPS[kind], folder)), place.scratch).wait())
        return place.folder

    def contents(self, name: str) -> dict[str, Any]:
        """What the records of a finished state say, by folder."""

        def read() -> dict[str, Any]:
            place = Place(self.inputs, self.state(name))
            return whole(start(lambda: {folder: content_of(place.outputs / folder) for folder in folders(place)}, place.scratch).wait())

        return self.once(f"contents {name}", read)


def whole(ended: Ended) -> Any:
    """What undisturbed work returned; raises RuntimeError where it failed."""
    failed = [job["error"] for job in ended.value or [] if isinstance(job, dict) and job.get("error")]
    if ended.status or failed:
        raise RuntimeError(f"undisturbed work failed: {ended.error or failed}\n{ended.text}")
    return ended.value


def folders(place: Place) -> list[str]:
    """The folders of all jobs, relative to the outputs."""
    return sorted(os.fspath(path.parent.relative_to(place.outputs)) for path in place.outputs.glob("*/*/.hydra"))


def judged(ended: Ended, expected: list[Any], names: list[str], tolerance: float = 0.0) -> tuple[str, str]:
    """The verdict on a sweep that was run, and its reason: equal results, or errors that hold one of these names.

    Args:
        ended: The sweep.
        expected: The result of each job of an undisturbed sweep.
        names: What an error must hold: a file, or a folder of files.
        tolerance: How far numbers may differ.
    """
    if ended.hung:
        return WRONG, "it hangs"
    if ended.status != 0:
        error = ended.error or ended.text[-300:]
        return REFUSED if any(name in error for name in names) else WRONG, f"ended with {ended.status}: {error}"
    verdict, details = SAME, []
    for number, (job, result) in enumerate(zip(ended.value, expected, strict=True)):
        if job.get("error"):
            named = any(name in job["error"] for name in names)
            verdict = WRONG if verdict == WRONG or not named else REFUSED
            details.append(f"job {number}: {job['error']}")
        elif found := differences(result, job["result"], tolerance):
            verdict = WRONG
            details.append(f"job {number} gives another result in {', '.join(found)}")
    return verdict, "; ".join(details)


def differences(one: Any, two: Any, tolerance: float = 0.0, name: str = "") -> list[str]:
    """The names of the values of a result that are others in a second one."""
    if isinstance(one, dict) and isinstance(two, dict):
        return [found for key in one for found in differences(one[key], two.get(key), tolerance, f"{name}.{key}".strip("."))]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [name] if any(differences(*pair, tolerance, name) for pair in zip(one, two, strict=True)) else []
    if tolerance and isinstance(one, float) and isinstance(two, float):
        return [] if math.isclose(one, two, rel_tol=tolerance, abs_tol=tolerance) else [name]
    return [] if one == two else [name or "all"]
