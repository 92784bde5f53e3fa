"""Tables of the protocols that papers report: base-to-new, few-shot curves, transfer to other data sets and domains."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from multicrop.compare.labels import label, varying, varying_groups
from multicrop.compare.rows import rows_of
from multicrop.compare.run import Run
from multicrop.compare.tables import Table

HALVES = ("base", "new")
PROTOCOLS = ("base_to_new", "all_shots", "cross_dataset", "domain_generalisation", "vendors")
CHOSEN_ON = {"validation": "few-shot validation", "fixed": "nothing"}  # a published table that mixes them says so


@dataclass(frozen=True)
class Cell:
    """One method on one data set in one column of its table.

    Attributes:
        accuracies: Top-1 accuracy (0-1) of each run, one per seed.
    """

    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the runs."""
        return mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation over the runs (n - 1); 0 for one run."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True)
class Scores:
    """The mean accuracies of a protocol.

    Attributes:
        cells: Cells by method, data set and column.
        chosen: How each method's hyper-parameters were selected.
        data: The data sets, in order of appearance.
        columns: The columns, sorted.
    """

    cells: Mapping[str, Mapping[tuple[str, str], Cell]]
    chosen: Mapping[str, str]
    data: Sequence[str]
    columns: Sequence[str]

    def average(self, method: str, column: str, data: Sequence[str]) -> float | None:
        """The mean over data sets of the means over seeds; None where the method lacks one of them."""
        found = [self.cells[method].get((name, column)) for name in data]
        return None if None in found else mean(cell.mean for cell in found if cell)


def protocol_tables(runs: Sequence[Run], protocol: str) -> list[Table]:
    """Make the tables of a protocol, in the form in which papers print them.

    Args:
        runs: Few-shot runs, as ``collect`` returns them.
        protocol: ``"base_to_new"``, ``"all_shots"``, ``"cross_dataset"``, ``"domain_generalisation"`` or
            ``"vendors"``.

    Returns:
        For the first two a table of averages over the data sets, where there are several, and one per data set; for the others one table.

    Raises:
        ValueError: If the protocol is none of these, or no run is one of it.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"--protocol is one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    few_shot = [run for run in runs if run.choices["task"] == "few_shot"]
    if protocol == "base_to_new":
        own = [run for run in few_shot if run.config.get("classes") in HALVES]
        return _split_tables(_scores(own, protocol, lambda run: run.config["classes"], HALVES), _base_to_new)
    if protocol == "all_shots":
        own = [run for run in few_shot if run.config.get("classes", "all") == "all" and run.shots]
        return _split_tables(_scores(own, protocol, lambda run: str(run.shots)), _curves)
    sources = [] if protocol == "vendors" else _sources(few_shot)  # which learn from the training vendors in each column
    return [_transfer(_scores(few_shot, protocol, lambda _: "accuracy"), sources, protocol)]


def harmonic(base: float | None, new: float | None) -> float | None:
    """The harmonic mean 2 b n / (b + n); None without both, 0 where both are 0."""
    if base is None or new is None:
        return None
    return 2 * base * new / (base + new) if base + new else 0.0


def _scores(runs: Sequence[Run], protocol: str, column: Callable[[Run], str], columns: Sequence[str] = ()) -> Scores:
    """Group the rows of all runs by method, data set and column."""
    if not runs:
        raise ValueError(f"none of the runs is one of the protocol {protocol}; make them with python run.py -m protocol={protocol}")
    names = _data_names(runs)
    places = [(names[id(run)], column(run)) for run in runs]
    knobs, groups = _varying(runs, places), varying_groups(runs)
    accuracies: dict[str, dict[tuple[str, str], dict[tuple, float]]] = {}  # by method, place and seeds
    chosen: dict[str, dict[str, None]] = {}  # several where the runs of a method differ
    rows = [(row, place) for run, place in zip(runs, places, strict=True) for row in rows_of(run)]
    for row, place in [*rows, *zip(runs, places, strict=True)]:
        method = label(row, knobs, groups)
        chosen.setdefault(method, {})[_chosen_on(row)] = None
        by_seeds = accuracies.setdefault(method, {}).setdefault(place, {})
        by_seeds[row.seeds] = row.sorted_predictions.accuracy()  # a repeated run counts once
    cells = {method: {place: Cell(tuple(found.values())) for place, found in own.items()} for method, own in accuracies.items()}
    data, present = dict.fromkeys(name for name, _ in places), {name for _, name in places}
    ordered = [name for name in columns if name in present] or sorted(present, key=lambda name: (len(name), name))
    return Scores(cells, {method: ", ".join(found) for method, found in chosen.items()}, list(data), ordered)


def _chosen_on(run: Run) -> str:
    """What the hyper-parameters of a run were chosen on; empty for its other rows."""
    how = run.metrics.get("selection", {}).get("how", "") if run.scored_row == "final" else ""
    return CHOSEN_ON.get(how, how)


def _data_names(runs: Sequence[Run]) -> dict[int, str]:
    """The name of each run's data set, without the half of its classes, and with the knobs that tell data sets of one name apart."""
    plain: dict[str, list[Run]] = {}
    for run in runs:
        plain.setdefault(run.dataset.removesuffix(f"-{run.config.get('classes')}"), []).append(run)
    names: dict[int, str] = {}
    for name, alike in plain.items():
        knobs = [knob for knob in varying(alike) if knob.startswith("dataset.")]
        names |= {id(run): " ".join([name, *(str(run.knobs.get(knob)) for knob in knobs)]) for run in alike}
    return names


def _varying(runs: Sequence[Run], places: Sequence[tuple[str, str]]) -> list[str]:
    """The knobs in which methods differ: those in which runs of one data set and column do."""
    alike: dict[tuple[str, str], list[Run]] = {}
    for run, place in zip(runs, places, strict=True):
        alike.setdefault(place, []).append(run)
    return list(dict.fromkeys(name for group in alike.values() for name in varying(group) if not name.startswith("dataset.")))


def _sources(runs: Sequence[Run]) -> list[str]:
    """The names of the data sets that the runs learned from."""
    return sorted({str(run.metrics.get("support", {}).get("of", run.dataset)) for run in runs})


def _split_tables(scores: Scores, made: Callable[[Scores, str, Sequence[str]], Table]) -> list[Table]:
    """The table of averages, where there are several data sets, and that of each."""
    averages = [made(scores, f"average over {len(scores.data)} data sets", scores.data)] if len(scores.data) > 1 else []
    return [*averages, *(made(scores, name, [name]) for name in scores.data)]


def _base_to_new(scores: Scores, title: str, data: Sequence[str]) -> Table:
    rows = []
    for method in scores.cells:
        base, new = (scores.average(method, half, data) for half in HALVES)
        rows.append({**_row(scores, method, title, data), "base": base, "new": new, "harmonic": harmonic(base, new)})
    columns = {**_first(), "base": _percent("base"), "new": _percent("new"), "H": _percent("harmonic"), **_last()}
    note = "H: harmonic mean of the means over seeds" + (", here of the averages over the data sets" if len(data) > 1 else "")
    return Table(f"base-to-new, {title}, top-1 %", "base_to_new", columns, rows, notes=[note, *_notes(rows)])


def _curves(scores: Scores, title: str, data: Sequence[str]) -> Table:
    rows = [
        {**_row(scores, method, title, data), **{f"shots_{name}": scores.average(method, name, data) for name in scores.columns}}
        for method in scores.cells
    ]
    columns = {**_first(), **{f"{name} shots": _percent(f"shots_{name}") for name in scores.columns}, **_last()}
    return Table(f"few-shot, {title}, top-1 %", "all_shots", columns, rows, notes=_notes(rows))


def _transfer(scores: Scores, sources: Sequence[str], protocol: str) -> Table:
    first = [name for name in scores.data if name in sources]
    targets = [name for name in scores.data if name not in sources]
    rows = []
    for method in scores.cells:
        each = {name: scores.average(method, "accuracy", [name]) for name in [*first, *targets]}
        average = scores.average(method, "accuracy", targets) if targets else None
        rows.append({**_row(scores, method, "all", scores.data), **each, "average": average})
    heads = {**{f"{name} (source)": _percent(name) for name in first}, **{name: _percent(name) for name in targets}}
    title = f"{protocol.replace('_', ' ')}{' from ' if sources else ''}{', '.join(sources)}, top-1 %"
    columns = {**_first(), **heads, "average of targets" if sources else "average": _percent("average"), **_last()}
    return Table(title, protocol, columns, rows, notes=_notes(rows))


def _row(scores: Scores, method: str, title: str, data: Sequence[str]) -> dict:
    own = [cell for (name, _), cell in scores.cells[method].items() if name in data]
    runs, spread = [len(cell.accuracies) for cell in own], max((cell.spread for cell in own), default=0.0)
    return {"data": title, "method": method, "runs": min(runs, default=0), "largest_spread": spread, "chosen_on": scores.chosen[method]}


def _first() -> dict[str, Callable[[Mapping], str]]:
    return {"method": lambda r: r["method"]}


def _last() -> dict[str, Callable[[Mapping], str]]:
    return {"seeds": lambda r: str(r["runs"]), "chosen on": lambda r: r["chosen_on"]}


def _percent(name: str) -> Callable[[Mapping], str]:
    return lambda r: "" if r.get(name) is None else f"{100 * r[name]:.2f}"


def _notes(rows: Iterable[Mapping]) -> list[str]:
    """Notes on all rows."""
    largest = max((row["largest_spread"] for row in rows), default=0.0)
    return [f"means over seeds; their largest standard deviation is {100 * largest:.2f} points; an empty cell lacks a run"]
