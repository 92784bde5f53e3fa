"""Tables and picture of `protocol=all_shots` from its records: python experiments/protocols/tables.py FOLDER.

A vendor that has records below FOLDER is computed from them and takes the place of its rows in shots.csv and shots_compared.csv; all other
rows stay.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multicrop.compare.statistics import holm
from multicrop.files import save_figure

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.few_shot.tables import ALONE, COLOURS, HOSTS, Cell, by_cell, measured, paired, read_rows, tested
from experiments.study import clusters_of, data_of, distance, markdown, numbers, read_runs, write_csv

OUTPUT = Path(__file__).parent
RESULTS = "data", "host", "adapter", "shots", "top1", "low", "high", "seeds"
COMPARED = "data", "host", "adapter", "shots", "against", "difference", "low", "high", "p", "p_holm"
SAME, HOST = "the same on the global view", "the host alone"  # with which a cell is compared
Rows = dict[tuple, list[str]]


def bare(hosts: Mapping[Cell, dict]) -> dict[Cell, dict]:
    """Each host without an adapter, once: all runs have one crop seed."""
    return {(data, host, *ALONE): dict(list(right.items())[:1]) for (data, host, *_), right in hosts.items()}


def results_of(cells: Mapping[Cell, dict], hosts: Mapping[Cell, dict], clusters: Mapping[str, Sequence[str]]) -> Rows:
    """Top-1 with its interval and the number of draws, for each cell and for each host without an adapter."""
    return {key: measured(right, clusters[key[0]]) for key, right in {**cells, **bare(hosts)}.items()}


def compared_of(cells: Mapping[Cell, dict], hosts: Mapping[Cell, dict], clusters: Mapping[str, Sequence[str]]) -> Rows:
    """D&D against the global view with the same adapter, and each adapter against its host; Holm over adapters and shots of a question."""
    found, questions, every = {}, defaultdict(list), {**cells, **bare(hosts)}
    for (data, host, adapter, shots), right in every.items():
        against = {HOST: hosts.get((data, host, adapter, shots)), SAME: every.get((data, "global", adapter, shots))}
        for name, old in against.items():
            if old and (host, name) != ("global", SAME):
                got = paired(right, old, clusters[data])
                found[data, host, adapter, shots, name] = [*numbers(got), got.p_value]
                questions[data, host, name].append((data, host, adapter, shots, name))
    for keys in questions.values():
        for key, p in zip(keys, holm([found[key][3] for key in keys]), strict=True):
            found[key] = [*found[key][:3], f"{found[key][3]:.4f}", f"{p:.4f}"]
    return found


def merged(path: Path, header: Sequence[str], new: Rows) -> Rows:
    """The new rows, and those of the file whose data have none; written back."""
    asked = int("against" in header)  # columns between the cell and its numbers
    old = {(*cell, *row[:asked]): row[asked:] for cell, row in read_rows(path)}
    fresh = {key[0] for key in new}
    rows = {**{key: row for key, row in old.items() if key[0] not in fresh}, **new}
    ordered = dict(sorted(rows.items(), key=lambda item: (distance(item[0][0]), list(HOSTS).index(item[0][1]), item[0][2:])))
    write_csv(path, header, [[*key, *row] for key, row in ordered.items()])
    return ordered


def draw(results: Rows, path: Path) -> None:
    """Top-1 over shots: a row of panels per vendor, a column per adapter, a curve per host; dashed: the host without an adapter."""
    data, adapters, hosts = (_seen(results, place) for place in (0, 2, 1))
    adapters.remove(ALONE[0])
    figure = Figure(figsize=(2.5 * len(adapters) + 0.8, 2.4 * len(data) + 0.8), layout="constrained")
    axes = figure.subplots(len(data), len(adapters), squeeze=False, sharey="row", sharex=True)
    for row, name in enumerate(data):
        for column, adapter in enumerate(adapters):
            for host in hosts:
                _curve(axes[row, column], results, (name, host, adapter))
            axes[row, column].set_title(f"{adapter}, {name.removeprefix('scenes, ')} vendor", fontsize=9)
        axes[row, 0].set_ylabel("top-1, %", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("shots per class", fontsize=9)
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines() if line.get_label() in HOSTS.values()}
    note = "dashed: the host without an adapter; bands: 95 % interval over draws of the support and clusters"
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), fontsize=9, title=note, title_fontsize=9)
    save_figure(figure, path, dpi=100)


def _seen(results: Rows, place: int) -> list[str]:
    """What the keys have there, in the order of the rows."""
    return list(dict.fromkeys(key[place] for key in results))


def _curve(axis: Axes, results: Rows, cell: tuple[str, str, str]) -> None:
    shots = sorted(key[3] for key in results if key[:3] == cell)
    if not shots:
        return
    top, low, high = np.array([[float(value) for value in results[*cell, number][:3]] for number in shots]).T
    colour = COLOURS[cell[1]]
    axis.plot(shots, top, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=HOSTS[cell[1]])
    axis.fill_between(shots, low, high, color=colour, alpha=0.13, linewidth=0)
    axis.axhline(float(results[*cell[:2], *ALONE][0]), color=colour, linestyle="--", linewidth=0.9)
    axis.set_xscale("log", base=2)
    axis.set_xticks(shots, list(map(str, shots)))
    axis.grid(axis="y", alpha=0.3)


def tables(results: Rows, compared: Rows) -> Iterable[str]:
    """Per vendor: top-1 by shots, as papers print it, and what D&D fused adds to each adapter."""
    for data in _seen(results, 0):
        shots = sorted({key[3] for key in results if key[0] == data and key[3]})
        lines = []
        for host in [host for host in HOSTS if (data, host, *ALONE) in results]:
            lines.append([HOSTS[host], "none", *[_top(results[data, host, *ALONE])] * len(shots)])
            for adapter in sorted({key[2] for key in results if key[:2] == (data, host) and key[3]}):
                own = [results.get((data, host, adapter, number)) for number in shots]
                lines.append([HOSTS[host], adapter, *(_top(row) if row else "-" for row in own)])
        yield f"{data}, top-1 %\n\n{markdown(['host', 'adapter', *map(str, shots)], lines)}"
        lines = [["none", *[tested(compared.get((data, "dnd_fused", *ALONE, SAME)))] * len(shots)]]
        for adapter in sorted({key[2] for key in results if key[0] == data and key[3]}):
            lines.append([adapter, *(tested(compared.get((data, "dnd_fused", adapter, number, SAME))) for number in shots)])
        yield f"{data}, D&D fused against the global view, points\n\n{markdown(['adapter', *map(str, shots)], lines)}"


def _top(row: Sequence[str]) -> str:
    return f"{float(row[0]):.1f}"


def counted(compared: Rows) -> str:
    """How often a question is answered by more and by less, with the range of the differences."""
    lines = []
    for data, host, against in dict.fromkeys((key[0], key[1], key[4]) for key in compared):
        rows = [row for key, row in compared.items() if (key[0], key[1], key[4]) == (data, host, against)]
        found = [float(row[0]) for row in rows]
        held = [float(row[0]) for row in rows if float(row[4]) < 0.05]
        more, less = sum(value > 0 for value in held), sum(value < 0 for value in held)
        lines.append([data, HOSTS[host], against, f"{min(found):+.1f} to {max(found):+.1f}", f"{more} better, {less} worse of {len(rows)}"])
    return markdown(["data", "host", "against", "points", "significant"], lines)


def main() -> None:
    """Read the records, merge the tables, draw the picture and print the tables."""
    runs = read_runs(Path(sys.argv[1]))
    cells, hosts, clusters = by_cell(runs, "final"), by_cell(runs, "aggregated"), clusters_of(runs, data_of)
    results = merged(OUTPUT / "shots.csv", RESULTS, results_of(cells, hosts, clusters))
    compared = merged(OUTPUT / "shots_compared.csv", COMPARED, compared_of(cells, hosts, clusters))
    draw(results, OUTPUT / "shots.png")
    print("\n\n".join([*tables(results, compared), counted(compared)]))


if __name__ == "__main__":
    main()
