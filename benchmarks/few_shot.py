"""Tables and figure of experiments/few_shot from the records of its sweeps: python benchmarks/few_shot.py FOLDER."""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from study import POINTS, Run, accuracy, markdown, numbers, points, read_runs, write_csv

from multicrop.stats import Comparison, compare_runs, holm

OUTPUT = Path(__file__).parent.parent / "experiments/few_shot"
HOST_OF = {"global": "global", "mean_feature": "crops", "dnd": "dnd"}  # aggregator -> host of conf/experiment/few_shot
HOSTS = {"global": "global view", "crops": "crops, mean", "dnd": "D&D"}
COLOURS = {"global": "#8a8a94", "crops": "#d08a2e", "dnd": "#2a7f62"}
COLUMNS = 5
RESAMPLES = 20_000  # the least p-value is then 0.0001: enough for Holm over ten adapters
Cell = tuple[str, str, str, int]  # dataset, host, adapter, shots


def by_cell(runs: list[Run], row: str) -> dict[Cell, dict[int, np.ndarray]]:
    """What each cell got right, by seed: `final` with its adapter, `aggregated` its host alone."""
    cells: dict[Cell, dict[int, np.ndarray]] = defaultdict(dict)
    for run in runs:
        cells[cell(run)][run.config["seed"]] = run.correct[row]
    return dict(cells)


def cell(run: Run) -> Cell:
    """Where a run stands in the grid."""
    return run.dataset, HOST_OF[run.choices["aggregator"]], run.choices["adapter"], run.config["task"]["shots"]


def paired(new: dict[int, np.ndarray], old: dict[int, np.ndarray]) -> Comparison:
    """Over the seeds that both have."""
    seeds = sorted(set(new) & set(old))
    return compare_runs(*(np.stack([side[seed] for seed in seeds]) for side in (new, old)), resamples=RESAMPLES)


def gains(cells: dict[Cell, dict], hosts: dict[Cell, dict]) -> list[tuple[Cell, str, Comparison]]:
    """For each cell: what the adapter adds to its host, and what crops and descriptions add to the adapter."""
    found = []
    for (dataset, host, adapter, shots), right in sorted(cells.items()):
        key = dataset, host, adapter, shots
        found.append((key, "the host alone", paired(right, hosts[key])))
        for other in {"crops": ("global",), "dnd": ("crops", "global")}.get(host, ()):
            if old := cells.get((dataset, other, adapter, shots)):
                found.append((key, f"{adapter} on {HOSTS[other]}", paired(right, old)))
    return found


def by_question(found: list[tuple[Cell, str, Comparison]]) -> list[float]:
    """P-values, corrected by Holm over the adapters that one question is asked of: a data set, shots, host, and what it is compared to."""
    questions: dict[tuple, list[int]] = defaultdict(list)
    for place, ((dataset, host, _, shots), against, _) in enumerate(found):
        questions[dataset, host, shots, against.split(" on ")[-1]].append(place)
    corrected = [1.0] * len(found)
    for places in questions.values():
        for place, p in zip(places, holm([found[place][2].p_value for place in places]), strict=True):
            corrected[place] = p
    return corrected


def draw(cells: dict[Cell, dict], hosts: dict[Cell, dict], path: Path) -> None:
    """Accuracy by shots, one panel an adapter and data set, one line a host; dashed: the host without an adapter."""
    datasets = [d for d in ("scenes", "emoji") if len({key[3] for key in cells if key[:2] == (d, "dnd")}) > 1]  # a curve has two points
    panels = [(dataset, adapter) for dataset in datasets for adapter in sorted({key[2] for key in cells if key[0] == dataset})]
    figure = Figure(figsize=(12, 2.6 * -(-len(panels) // COLUMNS)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // COLUMNS), COLUMNS, squeeze=False, sharex=True, sharey=True)
    for axis in grid.flat[len(panels) :]:
        axis.set_axis_off()
    for place, (axis, (dataset, adapter)) in enumerate(zip(grid.flat, panels, strict=False)):
        _panel(axis, dataset, adapter, cells, hosts)
        axis.set_title(f"{adapter}, {dataset}", fontsize=9)
        if place + COLUMNS >= len(panels):  # nothing below
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("shots", fontsize=8)
    for axes in grid:
        axes[0].set_ylabel("top-1, %", fontsize=8)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path, dpi=130)


def _panel(axis, dataset: str, adapter: str, cells: dict[Cell, dict], hosts: dict[Cell, dict]) -> None:
    for host, title in HOSTS.items():
        shots = sorted(key[3] for key in cells if key[:3] == (dataset, host, adapter))
        if not shots:
            continue
        got = [accuracy(np.stack(list(cells[dataset, host, adapter, n].values()))) for n in shots]
        heights = [POINTS * a.difference for a in got]
        spread = [[POINTS * (a.difference - a.low) for a in got], [POINTS * (a.high - a.difference) for a in got]]
        axis.errorbar(shots, heights, spread, marker="o", markersize=3, capsize=2, linewidth=1.2, color=COLOURS[host], label=title)
        alone = next(iter(hosts[dataset, host, adapter, shots[0]].values())).mean()
        axis.axhline(POINTS * alone, color=COLOURS[host], linestyle="--", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks([1, 2, 4, 8, 16], [1, 2, 4, 8, 16], fontsize=7)
    axis.grid(alpha=0.3)


def main() -> None:
    runs = read_runs(Path(sys.argv[1]))
    cells, hosts = by_cell(runs, "final"), by_cell(runs, "aggregated")
    OUTPUT.mkdir(exist_ok=True)
    seconds = defaultdict(list)
    for run in runs:
        seconds[cell(run)].append((run.metrics["selection"]["fit_seconds"], run.metrics["row_seconds"]["final"]))
    rows = []
    for key, right in sorted(cells.items()):
        fit, test = np.median(seconds[key], axis=0)
        rows.append([*key, *numbers(accuracy(np.stack(list(right.values())))), len(right), f"{fit:.2f}", f"{test:.2f}"])
    header = ["dataset", "host", "adapter", "shots", "top1", "low", "high", "seeds", "fit_seconds", "test_seconds"]
    write_csv(OUTPUT / "results.csv", header, rows)
    found = gains(cells, hosts)
    corrected = by_question(found)
    lines_out = [
        [*key, against, *numbers(got), f"{got.p_value:.4f}", f"{p:.4f}"] for (key, against, got), p in zip(found, corrected, strict=True)
    ]
    header = ["dataset", "host", "adapter", "shots", "against", "difference", "low", "high", "p", "p_holm"]
    write_csv(OUTPUT / "comparisons.csv", header, lines_out)
    draw(cells, hosts, OUTPUT / "curves.png")
    for dataset, shots in sorted({(key[0], key[3]) for key in cells}):
        table = []
        for adapter in sorted({key[2] for key in cells}):
            shown = [cells.get((dataset, host, adapter, shots)) for host in HOSTS]
            if any(shown):
                table.append([adapter, *(points(accuracy(np.stack(list(s.values()))), sign=False) if s else "-" for s in shown)])
        alone = [
            np.mean([v.mean() for k, c in hosts.items() if k[:2] == (dataset, host) for v in c.values()] or [np.nan]) for host in HOSTS
        ]
        table.insert(0, ["no adapter", *(f"{POINTS * a:.1f}" for a in alone)])
        print(f"\n{dataset}, {shots} shots\n\n{markdown(['adapter', *HOSTS.values()], table)}")
    for (key, against, got), p in zip(found, corrected, strict=True):
        if key[3] in (4, 16):
            print(key, "against", against, points(got), "" if p < 0.05 else "n.s.")


if __name__ == "__main__":
    main()
