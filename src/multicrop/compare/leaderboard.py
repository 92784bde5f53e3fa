"""Group runs into blocks (one per data set and task) and entries (one per method), each paired with a baseline per image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multicrop.compare.data_seeds import PooledRun, pooled
from multicrop.compare.identities import differing_parts
from multicrop.compare.run import DATA_SEED, SEEDS, Run
from multicrop.compare.statistics import Comparison, compare_runs, holm_family
from multicrop.record import ROWS


@dataclass(frozen=True)
class Entry:
    """One method on one data set: its runs (one per seed or stream order), mean accuracy, cost, and comparison with the baseline."""

    label: str
    runs: tuple[Run, ...]
    accuracy: float
    spread: float  # standard deviation over runs; 0 for one run
    encoder_calls: int  # per image
    seconds: float  # scoring time per run: aggregator, and adapter or method
    comparison: Comparison | None = None
    p_holm: float | None = None
    on_front: bool = False
    baseline: np.ndarray | None = None  # correctness, shape (runs, images)

    @property
    def correct(self) -> np.ndarray:
        """Correctness, shape (runs, images)."""
        return np.stack([run.sorted_predictions.correct() for run in self.runs])

    @property
    def clusters(self) -> Sequence[str]:
        """The cluster of each image; empty for data without clusters."""
        return self.runs[0].sorted_predictions.cluster


@dataclass(frozen=True)
class Block:
    """All entries of a task on the same images (or on the same data sets drawn by seed), best first, with notes on runs not compared.

    The comparisons of a block with its baseline are one family; ``tests`` is its size, the number of p-values in Holm's correction.
    """

    entries: tuple[Entry, ...]
    tests: int
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Run:
        """The first run of the best entry; all runs of the block have its images and labels."""
        return self.entries[0].runs[0]

    @property
    def task(self) -> str:
        """The task of all entries."""
        return self.first.choices["task"]

    @property
    def split(self) -> str:
        """The scored split: test or validation."""
        return self.first.config.get("split", "test")

    @property
    def data(self) -> str:
        """Data set, split, and numbers of images and classes."""
        return f"{self.first.dataset} ({self.split}): {len(self.first.sorted_predictions)} images, {len(self.first.class_names)} classes"

    @property
    def name(self) -> str:
        """Data set and task."""
        return f"{self.data}; {self.task}"


def blocks(runs: Sequence[Run], baseline: str | Sequence[Run] = "global") -> list[Block]:
    """Group runs into blocks of the same images and task, and compare each method with the baseline.

    Holm's correction is over the methods of a block. Runs that differ in ``dataset.dataset_seed`` are pooled first.

    Args:
        runs: Runs of any data sets, tasks and methods, as ``collect`` returns them.
        baseline: A row of every run (``global``, ``crops_mean``, ``aggregated``), or the runs of one method, of any task.

    Returns:
        One block per set of images and task.

    Raises:
        ValueError: If the baseline is no such row, or its runs are of several methods.
    """
    if isinstance(baseline, str) and baseline not in ROWS[:3]:
        raise ValueError(f"a baseline is {', '.join(ROWS[:3])} or the folder of a run, got {baseline!r}")
    if not isinstance(baseline, str) and (count := len({run.method for run in baseline})) > 1:
        raise ValueError(
            f"the baseline must be one method, got runs of {count} methods; pass the folder of one run, or of one method's seeds"
        )
    runs, baseline = pooled(runs), baseline if isinstance(baseline, str) else pooled(baseline)
    return [_block(members, baseline, len(runs) - len(group)) for group in _same_images(runs) for members in _by_task(group)]


def varying(runs: Sequence[Run]) -> list[str]:
    """The knobs in which these runs differ, without seeds and knobs that follow from the options; of knobs that vary together the first."""
    chosen = {k for k in runs[0].choices if len({run.choices.get(k) for run in runs}) > 1}
    kept: dict[tuple, str] = {}
    for name in dict.fromkeys(name for run in runs for name in run.knobs):
        top = name.split(".")[0]
        by_choice: dict[object, set] = {}
        for run in runs:
            value = str(run.knobs[name]) if name in run.knobs else None
            by_choice.setdefault(run.choices.get(top) if top in chosen else None, set()).add(value)
        if name not in SEEDS and max(map(len, by_choice.values())) > 1:
            kept.setdefault(tuple(str(run.knobs.get(name)) for run in runs), name)
    return list(kept.values())


def label(run: Run, knobs: Sequence[str], groups: Sequence[str]) -> str:
    """The label of a method in tables: aggregator, adapter or test-time method, crops, and the groups and knobs that vary."""
    parts = [run.choices.get("aggregator", "?"), *run.task_options.values()]
    extra = [f"{name.rsplit('.', 1)[-1]}={run.knobs[name]}" for name in knobs if name in run.knobs]
    return ", ".join([" + ".join(parts), run.choices.get("crop", "?"), *(run.choices.get(g, "?") for g in groups), *extra])


def _varying_groups(runs: Sequence[Run]) -> list[str]:
    """The groups ``model`` and ``prompt`` where these runs differ in them."""
    return [g for g in ("model", "prompt") if len({run.choices.get(g) for run in runs}) > 1]


def _same_images(runs: Sequence[Run]) -> list[list[Run]]:
    groups: list[list[Run]] = []
    for run in runs:
        home = next((group for group in groups if group[0].same_images(run)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    return groups


def _by_task(runs: Sequence[Run]) -> list[list[Run]]:
    """Group by task: zero-shot, few-shot and test-time methods use different data, so they are not ranked together."""
    return [[r for r in runs if r.choices["task"] == task] for task in dict.fromkeys(r.choices["task"] for r in runs)]


def _block(group: list[Run], baseline: str | Sequence[Run], others: int) -> Block:
    """The block of the runs in ``group``; ``others`` is the number of runs on other images."""
    methods: dict[str, list[Run]] = {}
    for run in group:
        methods.setdefault(run.method, []).append(run)
    knobs, groups = varying(group), _varying_groups(group)
    notes = []
    entries = [_entry(label(runs[0], knobs, groups), runs, baseline, notes) for runs in methods.values()]
    if repeats := len(group) - sum(len({run.seeds for run in runs}) for runs in methods.values()):
        notes.append(f"{repeats} run(s) have the same configuration and seeds as another run and count once")
    family = {id(entry): entry.comparison for entry in entries if entry.comparison is not None}
    corrected = dict(zip(family, holm_family(list(family.values())), strict=True))
    front = _front(entries)
    entries = [replace(e, p_holm=corrected.get(id(e)), on_front=e.label in front) for e in entries]
    if isinstance(group[0], PooledRun):
        notes.append(f"pooled over the data seeds {group[0].knobs[DATA_SEED]}: accuracies are means over them")
    if others:
        notes.append(f"{others} other run(s) scored other images or labels and are not paired with these")
    if differing := differing_parts(group):
        notes.append(f"the identities of these runs differ in: {', '.join(differing)}")
    tests = sum(entry.p_holm is not None for entry in entries)
    return Block(tuple(sorted(entries, key=lambda e: -e.accuracy)), tests, tuple(dict.fromkeys(notes)))


def _entry(name: str, runs: list[Run], baseline: str | Sequence[Run], notes: list[str]) -> Entry:
    unique = {run.seeds: run for run in runs}  # a repeated run counts once
    runs = sorted(unique.values(), key=lambda run: str(run.seeds))
    paired = [(run, base) for run in runs if (base := _base(run, baseline, notes)) is not None]
    runs = [run for run, _ in paired] or runs
    correct = np.stack([run.sorted_predictions.correct() for run in runs])
    accuracies = correct.mean(1)
    spread = float(accuracies.std(ddof=1)) if len(runs) > 1 else 0.0
    times = [run.metrics.get("row_seconds", {}) for run in runs]
    seconds = float(np.mean([time.get("aggregated", np.nan) + time.get("final", np.nan) for time in times]))
    calls = int(runs[0].metrics.get("views_per_image", 1))
    entry = Entry(name, tuple(runs), float(accuracies.mean()), spread, calls, seconds)
    if not paired:
        return entry
    bases = np.stack([base for _, base in paired])
    return replace(entry, comparison=compare_runs(correct, bases, clusters=entry.clusters), baseline=bases)


def _base(run: Run, baseline: str | Sequence[Run], notes: list[str]) -> np.ndarray | None:
    """Correctness of the baseline for one run: a row of the run, or the baseline run with the same seeds."""
    if isinstance(baseline, str):
        return run.sorted_predictions.correct(baseline)
    usable = [b for b in baseline if b.same_images(run)]
    if not usable:
        differing = differing_parts([baseline[0], run])
        parts = f" (their identities differ in: {', '.join(differing)})" if differing else ""
        notes.append(f"the baseline {baseline[0].folder} scored other images or labels{parts} and is not paired with these")
        return None
    match = next((b for b in usable if b.seeds == run.seeds), usable[0] if len(usable) == 1 else None)
    if match is None:
        notes.append(f"the baseline has no run with the seeds {run.seeds} of {run.folder}; this run is excluded from the comparison")
        return None
    return match.sorted_predictions.correct()


def _front(entries: Sequence[Entry]) -> set[str]:
    """Labels of the methods on the Pareto front: no method has higher accuracy at the same or lower cost."""
    best: dict[int, float] = {}
    for entry in entries:
        best[entry.encoder_calls] = max(entry.accuracy, best.get(entry.encoder_calls, 0.0))
    cheaper = {calls: max((a for c, a in best.items() if c < calls), default=-1.0) for calls in best}
    return {e.label for e in entries if e.accuracy == best[e.encoder_calls] and e.accuracy > cheaper[e.encoder_calls]}
