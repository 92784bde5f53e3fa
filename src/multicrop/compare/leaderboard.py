"""Runs put beside each other: one block a data set and task, one entry a method, each paired with a baseline image by image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multicrop.compare.statistics import Comparison, compare_runs, holm_family
from multicrop.record import ROWS, SEEDS, Record

PARTS = {"zero_shot": (), "few_shot": ("adapter",), "tta": ("method",)}


@dataclass(frozen=True)
class Entry:
    """One method on one data set: its runs (seeds, stream orders), their mean accuracy and cost, and the comparison to the baseline."""

    label: str
    records: tuple[Record, ...]
    accuracy: float
    spread: float  # standard deviation over runs; 0 for one
    encoder_calls: int  # an image
    seconds: float  # of scoring, a run: aggregator, and what the task adds
    comparison: Comparison | None = None
    p_holm: float | None = None
    on_front: bool = False
    baseline: np.ndarray | None = None  # correctness (runs, images)

    @property
    def correct(self) -> np.ndarray:
        """Correctness (runs, images)."""
        return np.stack([record.predictions.correct() for record in self.records])


@dataclass(frozen=True)
class Block:
    """All entries of a task on the same images, best first, with notes on what could not be compared.

    The comparisons of a block with its baseline are one family: `tests` says how many Holm's correction is over.
    """

    entries: tuple[Entry, ...]
    tests: int
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Record:
        """A record that speaks for the images of all."""
        return self.entries[0].records[0]

    @property
    def task(self) -> str:
        """The task of all entries."""
        return self.first.choices["task"]

    @property
    def split(self) -> str:
        """Which images were scored: test or validation."""
        return self.first.config.get("split", "test")

    @property
    def data(self) -> str:
        """The data set and its size."""
        return f"{self.first.dataset} ({self.split}): {len(self.first.predictions)} images, {len(self.first.class_names)} classes"

    @property
    def name(self) -> str:
        """The data set and the task."""
        return f"{self.data}; {self.task}"


def blocks(records: Sequence[Record], baseline: str | Sequence[Record] = "global") -> list[Block]:
    """Sort records into blocks of the same images and task, and compare each method with the baseline.

    `baseline` is a row that every record carries (global, crops_mean, aggregated) or the runs of one method, of any task. Holm's
    correction is over the methods of a block. Raises ValueError when the baseline runs are of several methods.
    """
    if isinstance(baseline, str) and baseline not in ROWS[:3]:
        raise ValueError(f"a baseline is {', '.join(ROWS[:3])} or a run's folder, got {baseline!r}")
    if not isinstance(baseline, str) and len({record.method for record in baseline}) > 1:
        count = len({record.method for record in baseline})
        raise ValueError(f"the baseline holds {count} methods; name the folder of one run, or of one method's seeds")
    return [_block(runs, baseline, len(records) - len(group)) for group in _same_images(records) for runs in _by_task(group)]


def varying(records: Sequence[Record]) -> list[str]:
    """The knobs in which these runs differ, other than seeds and what the chosen options bring along; of equal ones the first."""
    chosen = {k for k in records[0].choices if len({record.choices.get(k) for record in records}) > 1}
    kept: dict[tuple, str] = {}
    for name in dict.fromkeys(name for record in records for name in record.knobs):
        top = name.split(".")[0]
        by_choice: dict[object, set] = {}
        for record in records:
            value = str(record.knobs[name]) if name in record.knobs else None
            by_choice.setdefault(record.choices.get(top) if top in chosen else None, set()).add(value)
        if name not in SEEDS and max(map(len, by_choice.values())) > 1:
            kept.setdefault(tuple(str(record.knobs.get(name)) for record in records), name)
    return list(kept.values())


def label(record: Record, knobs: Sequence[str], groups: Sequence[str]) -> str:
    """What tables call a method: aggregator, adapter or test-time method, crops, and the `groups` and knobs that vary."""
    parts = [record.choices.get("aggregator", "?"), *(record.choices.get(p, "?") for p in PARTS.get(record.choices["task"], ()))]
    extra = [f"{name.rsplit('.', 1)[-1]}={record.knobs[name]}" for name in knobs if name in record.knobs]
    return ", ".join([" + ".join(parts), record.choices.get("crop", "?"), *(record.choices.get(g, "?") for g in groups), *extra])


def _varying_groups(records: Sequence[Record]) -> list[str]:
    """The groups beside aggregator, crop and the task's part in which these runs differ."""
    return [g for g in ("model", "prompt") if len({record.choices.get(g) for record in records}) > 1]


def _same_images(records: Sequence[Record]) -> list[list[Record]]:
    groups: list[list[Record]] = []
    for record in records:
        home = next((group for group in groups if group[0].same_images(record)), None)
        if home is None:
            groups.append([record])
        else:
            home.append(record)
    return groups


def _by_task(records: Sequence[Record]) -> list[list[Record]]:
    """Zero-shot, few-shot and test-time methods apart: they answer different questions and know different things."""
    return [[r for r in records if r.choices["task"] == task] for task in dict.fromkeys(r.choices["task"] for r in records)]


def _block(group: list[Record], baseline: str | Sequence[Record], others: int) -> Block:
    """The block of the runs in `group`; `others` are the runs on other images."""
    methods: dict[str, list[Record]] = {}
    for record in group:
        methods.setdefault(record.method, []).append(record)
    knobs, groups = varying(group), _varying_groups(group)
    notes = []
    entries = [_entry(label(runs[0], knobs, groups), runs, baseline, notes) for runs in methods.values()]
    if repeats := len(group) - sum(len({record.seeds for record in runs}) for runs in methods.values()):
        notes.append(f"{repeats} run(s) repeat another with the same configuration and seeds, and count once")
    family = {id(entry): entry.comparison for entry in entries if entry.comparison is not None}
    corrected = dict(zip(family, holm_family(list(family.values())), strict=True))
    front = _front(entries)
    entries = [replace(e, p_holm=corrected.get(id(e)), on_front=e.label in front) for e in entries]
    if others:
        notes.append(f"{others} other run(s) were scored on other images or labels and are not paired with these")
    tests = sum(entry.p_holm is not None for entry in entries)
    return Block(tuple(sorted(entries, key=lambda e: -e.accuracy)), tests, tuple(dict.fromkeys(notes)))


def _entry(name: str, runs: list[Record], baseline: str | Sequence[Record], notes: list[str]) -> Entry:
    unique = {record.seeds: record for record in runs}  # the same run made twice counts once
    runs = sorted(unique.values(), key=lambda record: str(record.seeds))
    paired = [(record, base) for record in runs if (base := _base(record, baseline, notes)) is not None]
    runs = [record for record, _ in paired] or runs
    correct = np.stack([record.predictions.correct() for record in runs])
    accuracies = correct.mean(1)
    spread = float(accuracies.std(ddof=1)) if len(runs) > 1 else 0.0
    times = [record.metrics.get("row_seconds", {}) for record in runs]
    seconds = float(np.mean([time.get("aggregated", np.nan) + time.get("final", np.nan) for time in times]))
    calls = int(runs[0].metrics.get("views_per_image", 1))
    entry = Entry(name, tuple(runs), float(accuracies.mean()), spread, calls, seconds)
    if not paired:
        return entry
    bases = np.stack([base for _, base in paired])
    return replace(entry, comparison=compare_runs(correct, bases), baseline=bases)


def _base(record: Record, baseline: str | Sequence[Record], notes: list[str]) -> np.ndarray | None:
    """The baseline's correctness for one run: its own row, or the baseline run of the same seeds."""
    if isinstance(baseline, str):
        return record.predictions.correct(baseline)
    usable = [b for b in baseline if b.same_images(record)]
    if not usable:
        notes.append(f"the baseline {baseline[0].folder} was scored on other images or labels: not paired with these")
        return None
    match = next((b for b in usable if b.seeds == record.seeds), usable[0] if len(usable) == 1 else None)
    if match is None:
        notes.append(f"the baseline has no run with the seeds {record.seeds} of {record.folder}: that run is left out of the comparison")
        return None
    return match.predictions.correct()


def _front(entries: Sequence[Entry]) -> set[str]:
    """The methods that no other beats in accuracy at the same cost or less."""
    best: dict[int, float] = {}
    for entry in entries:
        best[entry.encoder_calls] = max(entry.accuracy, best.get(entry.encoder_calls, 0.0))
    cheaper = {calls: max((a for c, a in best.items() if c < calls), default=-1.0) for calls in best}
    return {e.label for e in entries if e.accuracy == best[e.encoder_calls] and e.accuracy > cheaper[e.encoder_calls]}
