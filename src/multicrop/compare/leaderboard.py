"""Group runs into blocks (one per data set and task) and entries (one per method), each paired with a baseline per image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from multicrop.compare.data_seeds import PooledRun, pooled
from multicrop.compare.entries import Entry, entry_of
from multicrop.compare.identities import check_protocols, differing_parts
from multicrop.compare.labels import labels
from multicrop.compare.rows import rows_of
from multicrop.compare.run import DATA_SEED, Run
from multicrop.compare.small_samples import remarks
from multicrop.compare.statistics import holm_family
from multicrop.record import ROWS


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
        limit = f", limit={found}" if (found := self.first.data.get("limit")) else ""
        images, classes = len(self.first.sorted_predictions), len(self.first.class_names)
        return f"{self.first.dataset} ({self.split}{limit}): {images} images, {classes} classes"

    @property
    def name(self) -> str:
        """Data set and task."""
        return f"{self.data}; {self.task}"


def blocks(runs: Sequence[Run], baseline: str | Sequence[Run] = "global") -> list[Block]:
    """Group runs into blocks of the same images and task, and compare each method with the baseline.

    Holm's correction is over the methods of a block. Runs that differ in ``dataset.dataset_seed`` are pooled first. The global view, the
    crops averaged, the aggregator below an adapter or a method, and the further aggregators of the runs are methods too; one that several
    runs have is one method.

    Args:
        runs: Runs of any data sets, tasks and methods, as ``collect`` returns them.
        baseline: A row of every run (``global``, ``crops_mean``, ``aggregated``), or the runs of one method, of any task.

    Returns:
        One block per set of images and task.

    Raises:
        ValueError: If the baseline is no such row, its runs are of several methods, or runs have different protocol versions.
    """
    check_protocols([*runs, *(() if isinstance(baseline, str) else baseline)])
    if isinstance(baseline, str) and baseline not in ROWS[:3]:
        raise ValueError(f"a baseline is {', '.join(ROWS[:3])} or the folder of a run, got {baseline!r}")
    if not isinstance(baseline, str) and (count := len({run.method for run in baseline})) > 1:
        raise ValueError(
            f"the baseline must be one method, got runs of {count} methods; pass the folder of one run, or of one method's seeds"
        )
    runs, baseline = pooled(runs), baseline if isinstance(baseline, str) else pooled(baseline)
    return [_block(members, baseline, len(runs) - len(group)) for group in _same_images(runs) for members in _by_task(group)]


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
    rows = [row for run in group for row in rows_of(run)]
    for run in [*rows, *group]:  # of equal ones the last counts: a run before a row of another run
        methods.setdefault(run.method, []).append(run)
    notes = []
    named = zip(labels(list(methods.values()), group), methods.values(), strict=True)
    entries = [entry_of(name, runs, baseline, notes) for name, runs in named]
    if repeats := len(group) - len({(run.method, run.seeds) for run in group}):
        notes.append(f"{repeats} run(s) have the same configuration and seeds as another run and count once")
    compared = {id(entry): entry.comparison for entry in entries if entry.comparison is not None}
    corrected = dict(zip(compared, holm_family(list(compared.values())), strict=True))
    front = _front(entries)
    entries = [replace(entry, p_holm=corrected.get(id(entry)), on_front=id(entry) in front) for entry in entries]
    notes += _notes(group, others)
    clusters = next((found.clusters for found in compared.values() if found.clusters), None)
    notes += remarks(len(group[0].sorted_predictions), clusters)
    tests = sum(entry.p_holm is not None for entry in entries)
    return Block(tuple(sorted(entries, key=lambda e: -e.accuracy)), tests, tuple(dict.fromkeys(notes)))


def _notes(group: Sequence[Run], others: int) -> list[str]:
    """Notes on the runs of a block."""
    notes = []
    if isinstance(group[0], PooledRun):
        notes.append(f"pooled over the data seeds {group[0].knobs[DATA_SEED]}: accuracies are means over them")
    if others:
        notes.append(f"{others} other run(s) scored other images or labels and are not paired with these")
    if differing := differing_parts(group):
        notes.append(f"the identities of these runs differ in: {', '.join(differing)}")
    notes += dict.fromkeys(run.training_note for run in group if run.training_note)
    return notes


def _front(entries: Sequence[Entry]) -> set[int]:
    """Ids of the entries on the Pareto front: no method has higher accuracy at the same or lower cost."""
    best: dict[int, float] = {}
    for entry in entries:
        best[entry.encoder_calls] = max(entry.accuracy, best.get(entry.encoder_calls, 0.0))
    cheaper = {calls: max((a for c, a in best.items() if c < calls), default=-1.0) for calls in best}
    return {id(e) for e in entries if e.accuracy == best[e.encoder_calls] and e.accuracy > cheaper[e.encoder_calls]}
