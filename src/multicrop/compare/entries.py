"""One method of a table: its runs, paired with a baseline per image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from multicrop.compare.identities import differing_parts
from multicrop.compare.rows import ZERO_SHOT, is_baseline
from multicrop.compare.run import Run
from multicrop.compare.statistics import Comparison, compare_runs

TOP_K = 5


@dataclass(frozen=True)
class Entry:
    """One method on one data set: its runs (one per seed or stream order), mean accuracy, cost, and comparison with the baseline."""

    label: str
    runs: tuple[Run, ...]
    accuracy: float
    spread: float  # standard deviation over runs; 0 for one run
    encoder_calls: int  # per image
    seconds: float  # scoring time per run: aggregator, and adapter or method
    top5: float | None = None  # mean top-5 accuracy; None for at most five classes, and for records without ranks
    comparison: Comparison | None = None
    p_holm: float | None = None
    on_front: bool = False
    baseline: np.ndarray | None = None  # correctness, shape (runs, images)

    @property
    def correct(self) -> np.ndarray:
        """Correctness, shape (runs, images)."""
        return np.stack([run.sorted_predictions.correct() for run in self.runs])

    @property
    def is_baseline(self) -> bool:
        """Whether this is the global view or the crops averaged, which every table shows."""
        return is_baseline(self.runs)

    @property
    def clusters(self) -> Sequence[str]:
        """The cluster of each image; empty for data without clusters."""
        return self.runs[0].sorted_predictions.cluster


def entry_of(name: str, runs: list[Run], baseline: str | Sequence[Run], notes: list[str]) -> Entry:
    """One method, compared with the baseline; the baseline's own row is not.

    Args:
        name: Label of the method.
        runs: Its runs; of runs with equal seeds, which are repeats, the last counts.
        baseline: A row of the same runs, or other runs.
        notes: Notes for the reader of the table; new ones are appended.

    Returns:
        The entry, of the runs that have a baseline where any has one.
    """
    by_seeds: dict[tuple, list[Run]] = {}
    for run in runs:
        by_seeds.setdefault(run.seeds, []).append(run)
    repeats = sorted(by_seeds.values(), key=lambda same: str(same[0].seeds))
    paired = [(same[-1], base) for same in repeats if (base := _shared_base(same, baseline, notes)) is not None]
    runs = [run for run, _ in paired] or [same[-1] for same in repeats]
    entry = _unpaired(name, runs)
    if not paired:
        return entry
    bases = np.stack([base for _, base in paired])
    entry = replace(entry, baseline=bases)
    if runs[0].scored_row == baseline:
        return entry
    if all(_is_baseline(run, baseline) for run in runs):
        return replace(entry, comparison=Comparison(0.0, 0.0, 0.0, 1.0, 0, 0))
    return replace(entry, comparison=compare_runs(entry.correct, bases, clusters=entry.clusters))


def _unpaired(name: str, runs: Sequence[Run]) -> Entry:
    """Accuracy and cost of a method, means over its runs, without a comparison."""
    accuracies = np.stack([run.sorted_predictions.correct() for run in runs]).mean(1)
    return Entry(
        name,
        tuple(runs),
        accuracy=float(accuracies.mean()),
        spread=float(accuracies.std(ddof=1)) if len(runs) > 1 else 0.0,
        encoder_calls=runs[0].views,
        seconds=float(np.mean([run.seconds for run in runs])),
        top5=_top5(runs),
    )


def _top5(runs: Sequence[Run]) -> float | None:
    scored = [run.sorted_predictions for run in runs]
    known = len(runs[0].class_names) > TOP_K and all("final" in one.ranks for one in scored)
    return float(np.mean([one.accuracy(k=TOP_K) for one in scored])) if known else None


def _is_baseline(run: Run, baseline: str | Sequence[Run]) -> bool:
    """Whether a run is the baseline itself."""
    if run.scored_row != "final":
        return False
    if isinstance(baseline, str):
        return baseline == "aggregated" and run.choices["task"] == ZERO_SHOT
    return any(run.folder == other.folder for other in baseline)


def _shared_base(same: Sequence[Run], baseline: str | Sequence[Run], notes: list[str]) -> np.ndarray | None:
    """The baseline of equal runs; None where they have none, or several as rows of different runs can."""
    bases = [base for run in same if (base := _base(run, baseline, notes)) is not None]
    if not bases:
        return None
    if any(not np.array_equal(bases[0], other) for other in bases[1:]):
        notes.append(f"{same[-1].name}: the runs that share this row differ in their row {baseline}, so it is not compared")
        return None
    return bases[-1]


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
