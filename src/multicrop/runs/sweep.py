"""A sweep: one job after the other, failures kept and listed at the end, and a live view that reads what jobs leave in their folders."""

import logging
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from multicrop.config import SWEEPS, check_machine, choices, in_parallel, in_sweep, sweeper_takes_failures
from multicrop.runs.errors import tell
from multicrop.runs.secrets import redact_error

log = logging.getLogger(__name__)
QUIET = ("paths.", "trainer.", "engine", "logger", "hydra")  # overrides that do not name a job
_LAST: list["State"] = []
_UNWRITTEN: dict[Path, str] = {}  # the errors of jobs of this process whose failed.json could not be written
_VIEWS: list[Live] = []  # the live view of this process's sweep, while it runs


def job(cfg: DictConfig) -> float:
    """One experiment. A job of a sweep that fails leaves failed.json in its folder and NaN for the sweeper, and the sweep continues."""
    if not in_sweep():
        if group := next((group for group in SWEEPS if choices().get(group)), None):
            named = f"{group}={choices()[group]}"
            raise ValueError(f"{named} is a sweep of many runs: put -m before the overrides, python run.py -m {group}=...")
        try:
            return _single_run(cfg)
        except Exception as error:  # noqa: BLE001 Hydra would add lines to it
            raise SystemExit(tell(error, Path(HydraConfig.get().runtime.output_dir))) from None
    from multicrop.runs.experiment import run
    from multicrop.runs.job_folder import clear_failure
    from multicrop.runs.sweep_cache import process_cache

    folder = Path(HydraConfig.get().runtime.output_dir)
    clear_failure(folder)
    _UNWRITTEN.pop(folder.resolve(), None)
    if _VIEWS or in_parallel():  # two live displays would write over each other
        cfg.trainer.progress = False
    try:
        check_machine(cfg)
        with views_stopped_by_signals():
            return run(cfg, process_cache())
    except Exception as error:  # the other jobs run whatever one fails with; the failures are listed at the end
        redact_error(error)
        leave_failure(folder, error)
        log.error("job %s failed: %s", HydraConfig.get().job.num, error)
        if sweeper_takes_failures():
            raise
        return math.nan


def _single_run(cfg: DictConfig) -> float:
    """A run outside a sweep, once the machine has what it asks for."""
    check_machine(cfg)
    from multicrop.features import stop_on_signals  # this and others within functions: not loaded for --help or a refusal
    from multicrop.runs.experiment import run

    with stop_on_signals():
        return run(cfg)


@contextmanager
def views_stopped_by_signals() -> Iterator[None]:
    """A part of a sweep, which a signal ends together with the live view."""
    from multicrop.features import stop_on_signals

    try:
        with stop_on_signals():
            yield
    except SystemExit:
        for view in _VIEWS:
            view.stop()
        raise


def leave_failure(folder: Path, error: Exception) -> None:
    """Write the error and its traceback into the folder of a failed job; on a full disk it is kept in memory."""
    from multicrop.runs.job_folder import write_failure

    failure = f"{type(error).__name__}: {error}"
    try:
        write_failure(folder, failure, traceback.format_exception(error))
    except OSError as full:
        log.error("%s", full)
        _UNWRITTEN[folder.resolve()] = failure


@dataclass(frozen=True)
class State:
    """Where a sweep stands; `best` is (accuracy, job), `failed` maps jobs to their errors."""

    total: int | None
    done: int
    running: tuple[str, ...]
    failed: dict[str, str]
    best: tuple[float, str] | None

    def line(self, seconds: float | int, *, ended: bool = False) -> str:
        """One line: jobs done, running (or left unfinished by a sweep that ended) and failed, the best so far, the time left."""
        finished = self.done + len(self.failed)
        parts = [f"sweep: {self.done}{f' of {self.total}' if self.total else ''} done"]
        parts += [f"{'unfinished' if ended else 'running'} {', '.join(self.running)}"] if self.running else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [f"best {100 * self.best[0]:.1f} % ({self.best[1]})"] if self.best else []
        if self.total and finished and finished < self.total and not ended:
            parts.append(f"about {clock(seconds / finished * (self.total - finished))} left")
        return ", ".join([*parts, f"in {clock(seconds)}" if ended else f"{clock(seconds)} so far"])


def clock(seconds: float | int) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def scan(folder: Path, total: int | None) -> State:
    """The state that the jobs' folders show: each holds metrics.json (or a pointer to it) when done, failed.json when failed."""
    from multicrop.runs.job_folder import folder_state

    done, running, failed, best = 0, [], {}, None
    for place, name in _names(folder).items():
        state = folder_state(place)
        error = state.failed if state.failed is not None else _UNWRITTEN.get(place.resolve())
        if error is not None:
            failed[name] = error
        elif not state.done:
            running.append(place.name)
        else:
            done += 1
            if state.accuracy is not None and (best is None or state.accuracy > best[0]):
                best = (state.accuracy, name)
    return State(total, done, tuple(running), failed, best)


def count_jobs(overrides: Sequence[str], params: dict[str, object]) -> int | None:
    """How many jobs the basic sweeper makes of these overrides and `hydra.sweeper.params`; None where that cannot be known."""
    words = [f"{name}={value}" for name, value in params.items()] + list(overrides)
    try:
        parsed = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(words)}  # the last word on a key counts
        return math.prod(len(list(o.sweep_string_iterator())) for o in parsed.values() if o.is_sweep_override())
    except (HydraException, NotImplementedError):
        return None


def exit_status() -> int:
    """1 when jobs of this process's last sweep failed, else 0."""
    return int(bool(_LAST and _LAST[-1].failed))


class SweepView(Callback):
    """Shows a sweep while it runs: a live line in a terminal, nothing in a pipe; at the end which jobs failed, and why."""

    def __init__(self, *, live: bool) -> None:
        self.wanted, self.view = live, None

    def __getstate__(self) -> dict:
        """Without the view: parallel launchers send the callbacks to their processes, and a terminal stays here."""
        return self.__dict__ | {"view": None}

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Start to watch the sweep's folder."""
        sweeper = config.hydra.sweeper
        total = sweeper.get("n_trials") or count_jobs(_words(config), dict(sweeper.get("params") or {}))
        self.folder, self.total, self.started = Path(config.hydra.sweep.dir), total, time.monotonic()
        console = Console()  # its own: Lightning's progress bar clears the live displays of the shared one
        if self.wanted and console.is_terminal:
            self.view = Live(get_renderable=self._line, console=console, refresh_per_second=1)
            self.view.start()
            _VIEWS.append(self.view)

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """The last state, and the failures."""
        if self.view is not None:
            self.view.stop()
            _VIEWS.clear()
        state = scan(self.folder, self.total)
        _LAST.append(state)
        console = Console()
        if self.view is None:
            console.print(self._line(ended=True), soft_wrap=True)
        for name, error in state.failed.items():
            console.print(escape(f"failed: {name}: {error}"), soft_wrap=True)
        if state.failed:
            console.print(
                escape(f"tracebacks: {self.folder}/*/failed.json; the same command again runs only what is not done"), soft_wrap=True
            )
        console.print(escape(f"compare them: multicrop compare {self.folder}"), soft_wrap=True)

    def _line(self, *, ended: bool = False) -> str:
        return escape(scan(self.folder, self.total).line(time.monotonic() - self.started, ended=ended))


def _words(config: DictConfig) -> list[str]:
    """The overrides as they were passed, with references to variables instead of their values."""
    return OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # type: ignore[return-value]


def _names(folder: Path) -> dict[Path, str]:
    """The folders of the jobs that have begun, each with its number and the overrides that not all of them share."""
    from multicrop.runs.job_folder import overrides_in

    overrides = {path.parent.parent: overrides_in(path) for path in folder.glob("*/.hydra/overrides.yaml")}
    common = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()
    places = sorted(overrides, key=lambda place: (len(place.name), place.name))
    own = {place: [word for word in overrides[place] if word not in common and not word.startswith(QUIET)] for place in places}
    return {place: f"{place.name}: {' '.join(words)}" for place, words in own.items()}
