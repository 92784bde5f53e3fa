"""Tables and figure of experiments/few_shot from the records of its sweeps: python experiments/few_shot/tables.py FOLDER.

The study takes hours, so it grows by parts: cells that have records below FOLDER are computed from them and take the place of their
rows in results.csv and comparisons.csv; all other rows stay. Holm's correction is made anew over old and new. To begin from nothing,
delete the two tables.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from multicrop.compare.run import Run
from multicrop.compare.statistics import Comparison, compare_runs, holm
from multicrop.files import save_figure

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.study import (
    Dots,
    accuracy,
    bold,
    clusters_of,
    data_of,
    distance,
    dot_plot,
    markdown,
    numbers,
    read_runs,
    with_interval,
    write_csv,
)

OUTPUT = Path(__file__).parent
HOST_OF = {
    "global": "global",
    "mean_feature": "crops",
    "dnd": "dnd",
    "dnd_fused": "dnd_fused",
}  # aggregator -> host of conf/experiment/few_shot
HOSTS = {"global": "global view", "crops": "crops, mean", "dnd": "D&D", "dnd_fused": "D&D fused"}
COLOURS = {"global": "#8a8a94", "crops": "#d08a2e", "dnd": "#3d6fb6", "dnd_fused": "#2a7f62"}
OTHERS = {"crops": ("global",), "dnd": ("crops", "global"), "dnd_fused": ("global",)}  # with which a host is compared
RESAMPLES = 20_000  # the least p-value is then 0.0001: enough for Holm over eleven adapters
ALONE = "none", 0  # adapter and shots of a host without an adapter
RESULTS = "dataset", "host", "adapter", "shots", "top1", "low", "high", "seeds", "fit_seconds", "test_seconds"
COMPARISONS = "dataset", "host", "adapter", "shots", "against", "difference", "low", "high", "p", "p_holm"
Cell = tuple[str, str, str, int]  # dataset, host, adapter, shots


def by_cell(runs: list[Run], row: str) -> dict[Cell, dict[int, np.ndarray]]:
    """What each cell got right, by seed: `final` with its adapter, `aggregated` only its host."""
    cells: dict[Cell, dict[int, np.ndarray]] = defaultdict(dict)
    for run in runs:
        cells[cell(run)][run.config["seed"]] = run.sorted_predictions.correct(row)
    return dict(cells)


def cell(run: Run) -> Cell:
    """Where a run stands in the grid."""
    return data_of(run), HOST_OF[run.choices["aggregator"]], run.choices["adapter"], run.config["task"]["shots"]


def paired(new: dict[int, np.ndarray], old: dict[int, np.ndarray], clusters: Sequence[str]) -> Comparison:
    """Over the seeds that both have."""
    seeds = sorted(set(new) & set(old))
    return compare_runs(*(np.stack([side[seed] for seed in seeds]) for side in (new, old)), clusters=clusters, resamples=RESAMPLES)


def gains(cells: dict[Cell, dict], hosts: dict[Cell, dict], clusters: dict[str, Sequence[str]]) -> dict[tuple[Cell, str], list[str]]:
    """For each cell: what the adapter adds to its host, and what crops and descriptions add to the adapter; with the p-value."""
    found = {}
    for (dataset, host, adapter, shots), right in sorted(cells.items()):
        against = {"the host alone": hosts[dataset, host, adapter, shots]}
        for other in OTHERS.get(host, ()):
            if old := cells.get((dataset, other, adapter, shots)):
                against[f"{adapter} on {HOSTS[other]}"] = old
        for name, old in against.items():
            got = paired(right, old, clusters[dataset])
            found[(dataset, host, adapter, shots), name] = [*numbers(got), f"{got.p_value:.4f}"]
    return found


def corrected(found: dict[tuple[Cell, str], list[str]]) -> dict[tuple[Cell, str], list[str]]:
    """With p-values corrected by Holm over the adapters that one question (data set, host, shots, compared to what) is asked of."""
    questions: dict[tuple, list[tuple[Cell, str]]] = defaultdict(list)
    for key in found:
        (dataset, host, _, shots), against = key
        questions[dataset, host, shots, against.split(" on ")[-1]].append(key)
    rows = {}
    for keys in questions.values():
        for key, p in zip(keys, holm([float(found[key][3]) for key in keys]), strict=True):
            rows[key] = [*found[key][:4], f"{p:.4f}"]
    return dict(sorted(rows.items(), key=lambda item: item[0][0]))


def accuracies(runs: list[Run], cells: dict[Cell, dict], hosts: dict[Cell, dict]) -> dict[Cell, list[str]]:
    """Top-1 with its interval, seeds, and the median seconds of a fit and of a test, for each cell and for each host alone."""
    seconds, clusters = defaultdict(list), clusters_of(runs, data_of)
    for run in runs:
        seconds[cell(run)].append((run.metrics["selection"]["fit_seconds"], run.metrics["row_seconds"]["final"]))
    found = {}
    for key, right in cells.items():
        fit, test = np.median(seconds[key], axis=0)
        found[key] = [*measured(right, clusters[key[0]]), f"{fit:.2f}", f"{test:.2f}"]
    for (dataset, host, _, _), right in sorted(hosts.items(), key=lambda item: len(item[1])):  # the last has the most seeds
        found[dataset, host, *ALONE] = [*measured(right, clusters[dataset]), "0.00", "0.00"]  # a seed draws its crops
    return found


def measured(right: Mapping[int, np.ndarray], clusters: Sequence[str]) -> list[str]:
    """Top-1 with its interval, and the number of seeds."""
    return [*numbers(accuracy(np.stack(list(right.values())), clusters)), str(len(right))]


def read_rows(path: Path) -> list[tuple[Cell, list[str]]]:
    """The rows of a table below its header: the cell, and what follows it; none where there is no such file."""
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:] if path.is_file() else []
    return [((dataset, host, adapter, int(shots)), row) for dataset, host, adapter, shots, *row in rows]


def draw(results: dict[Cell, list[str]], path: Path) -> None:
    """Each adapter on its hosts, best D&D first, one panel per data set, at the shots that most of them have."""
    cells: dict[int, set[str]] = defaultdict(set)
    for dataset, _, _, number in results:
        cells[number] |= {dataset} if number else set()
    shots = max(cells, key=lambda number: (len(cells[number]), number))
    panels = {dataset: _adapters(results, dataset, shots) for dataset in sorted(cells[shots], key=distance)}
    height = 0.42 * max(map(len, panels.values())) + 1.4
    figure = Figure(figsize=(6 * len(panels), height), layout="constrained")
    for axis, (dataset, adapters) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        dot_plot(axis, adapters, adapters, [_dots(results, dataset, host, shots) for host in HOSTS if (dataset, host, *ALONE) in results])
        axis.set_title(f"{dataset}, {shots} shots per class", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    note = "dashed: the host without an adapter"
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, title=note, title_fontsize=9)
    save_figure(figure, path, dpi=130)


def _adapters(results: dict[Cell, list[str]], dataset: str, shots: int) -> list[str]:
    """The adapters of a data set, best with D&D first."""
    names = {key[2] for key in results if (key[0], key[3]) == (dataset, shots)}
    return sorted(names, key=lambda name: (-float(results.get((dataset, "dnd", name, shots), ["0"])[0]), name))


def _dots(results: dict[Cell, list[str]], dataset: str, host: str, shots: int) -> Dots:
    cells = {key[2]: row for key, row in results.items() if key[:2] == (dataset, host) and key[3] == shots}
    points = {name: (float(row[0]), float(row[1]), float(row[2])) for name, row in cells.items()}
    return Dots(HOSTS[host], COLOURS[host], float(results[dataset, host, *ALONE][0]), points)


def tables(results: dict[Cell, list[str]]) -> str:
    """One markdown table per data set and number of shots."""
    parts = []
    for dataset, shots in sorted({(key[0], key[3]) for key in results if key[3]}):
        alone = [results.get((dataset, host, *ALONE)) for host in HOSTS]
        rows = [["no adapter", *(f"{float(row[0]):.1f}" if row else "-" for row in alone)]]
        for adapter in sorted({key[2] for key in results if (key[0], key[3]) == (dataset, shots)}):
            got = [results.get((dataset, host, adapter, shots)) for host in HOSTS]
            rows.append([adapter, *(with_interval(row[:3], sign=False) if row else "-" for row in got)])
        parts.append(f"{dataset}, {shots} shots\n\n{markdown(['adapter', *HOSTS.values()], rows)}")
    return "\n\n".join(parts)


def added(found: dict[tuple[Cell, str], list[str]]) -> str:
    """What the adapter adds to its hosts, and crops and descriptions to the adapter, in one table a data set and number of shots."""
    questions = {f"to {title}": (host, "the host alone") for host, title in HOSTS.items()}
    questions |= {"crops to the global view": ("crops", HOSTS["global"]), "D&D to crops": ("dnd", HOSTS["crops"])}
    questions |= {"D&D fused to the global view": ("dnd_fused", HOSTS["global"])}
    asked = {(key, against.split(" on ")[-1]): row for (key, against), row in found.items()}
    parts = []
    for dataset, shots in sorted({(key[0], key[3]) for key, _ in found}):
        rows = []
        for adapter in sorted({key[2] for key, _ in found if (key[0], key[3]) == (dataset, shots)}):
            got = [asked.get(((dataset, host, adapter, shots), against)) for host, against in questions.values()]
            rows.append([adapter, *map(tested, got)])
        parts.append(f"{dataset}, {shots} shots, added\n\n{markdown(['adapter', *questions], rows)}")
    return "\n\n".join(parts)


def tested(row: Sequence[str] | None) -> str:
    """`+1.4 [+0.2, +2.6]`, bold where significant after correction; `-` where there is no comparison."""
    return "-" if row is None else bold(with_interval(row[:3]), float(row[4]))


def main() -> None:
    runs = read_runs(Path(sys.argv[1]))
    old_results = dict(read_rows(OUTPUT / "results.csv"))
    cells, hosts = by_cell(runs, "final"), by_cell(runs, "aggregated")
    if fewer := [key for key, right in cells.items() if key in old_results and len(right) < int(old_results[key][3])]:
        print(f"left out, for the tables have more seeds: {', '.join(map(str, fewer))}", file=sys.stderr)
        cells = {key: right for key, right in cells.items() if key not in fewer}
    old_gains = {(key, against): row for key, (against, *row) in read_rows(OUTPUT / "comparisons.csv")}
    new_results, new_gains = accuracies(runs, cells, hosts), gains(cells, hosts, clusters_of(runs, data_of))
    new_results = {key: row for key, row in new_results.items() if int(row[3]) >= int(old_results.get(key, row)[3])}
    results, found = old_results | new_results, corrected(old_gains | new_gains)
    OUTPUT.mkdir(exist_ok=True)
    write_csv(OUTPUT / "results.csv", RESULTS, ([*key, *row] for key, row in sorted(results.items())))
    write_csv(OUTPUT / "comparisons.csv", COMPARISONS, ([*key, against, *row] for (key, against), row in found.items()))
    draw(results, OUTPUT / "adapters.png")
    print(tables(results), added(found), sep="\n\n")
    print(
        f"\n{len(cells)} cells from {len(runs)} records; kept {len(results.keys() - new_results.keys())} rows of results.csv "
        f"and {len(found.keys() - new_gains.keys())} of comparisons.csv that have no records here"
    )


if __name__ == "__main__":
    main()
