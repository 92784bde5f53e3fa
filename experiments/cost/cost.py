"""Accuracy against encoder calls: python experiments/cost/cost.py [--small] [--folder FOLDER] [OVERRIDE ...].

Encodes each stream once per crop policy, side and seed (banks at hand are read), and writes results.csv, needed.csv and cost.png of what
was measured so far beside this file; with --small (a part of the data, two seeds, four crops) or with overrides, which are those of run.py
(such as model=local), into FOLDER.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from multicrop.compare.statistics import Comparison, compare_runs

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.cost.picture import draw
from experiments.cost.streams import ROOT, SMALL, Look, Measured, Plan, measure_all, read, seeds_of
from experiments.cost.tables import summary
from experiments.study import POINTS, markdown, numbers, write_csv

OUTPUT = Path(__file__).parent
HEADER = (
    *("data", "vendor", "way", "crops", "seeds", "images", "calls", "cost", "top1", "difference", "low", "high", "clusters"),
    *("over_chance", "on_front"),
)
NEEDED = ("data", "vendor", "policy", "as_good", "low", "high", "within_a_point")
BUDGETS = (0.25, 0.5, 0.75)  # shares of the validation images that get crops
MARGIN = 0.01  # of accuracy, that a way of looking may lose
RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One way of looking on one stream.

    Attributes:
        calls: Mean encoder calls per image.
        cost: The same in forward passes of a view of the model's side.
        correct: Which images are right (seeds, images).
        over_chance: What a cascade gains over crops for as many images drawn at random; None for other ways.
    """

    data: str
    vendor: str
    way: str
    crops: int
    calls: float
    cost: float
    correct: np.ndarray
    over_chance: float | None = None

    @property
    def top1(self) -> float:
        return float(self.correct.mean())


def fixed(data: str, vendor: str, look: Look, found: list[Measured], counts: list[int]) -> list[Row]:
    """The global view alone (for random crops), and each number of crops for every image."""
    rows = []
    for place, count in enumerate([0, *counts]):
        if count or look == Look("random"):
            way = str(look) if count else "global view"
            correct = np.stack([one.correct[place] for one in found])
            rows.append(Row(data, vendor, way, count, 1 + count, 1 + count * found[0].share, correct))
    return rows


def thresholds(valid: list[Measured], place: int) -> dict[str, float]:
    """Thresholds of the global view's probability, from validation images: below them an image gets crops.

    ``chosen`` is the lowest at which validation accuracy is that of crops for every image; the others spend a share of the crops.
    """
    sure = valid[0].sure
    found = {f"{round(100 * share)} %": float(np.quantile(sure, share)) for share in BUDGETS}
    candidates = [0.0, *np.unique(sure), np.inf]
    accuracy = [np.mean([cascade(one, limit, place)[0] for one in valid]) for limit in candidates]
    target = accuracy[-1] - 1e-9  # crops for every image
    return {"chosen": float(next(limit for limit, got in zip(candidates, accuracy, strict=True) if got >= target)), **found}


def cascade(found: Measured, limit: float, place: int) -> tuple[np.ndarray, float]:
    """Which images are right where those under the limit get crops, and the share of these."""
    unsure = found.sure < limit
    return np.where(unsure, found.correct[place], found.correct[0]), float(unsure.mean())


def cascades(data: str, vendor: str, test: list[Measured], valid: list[Measured], counts: list[int]) -> list[Row]:
    """The cascade at each threshold, with the most crops of the half of `counts` and with all of them."""
    rows = []
    for place in {len(counts), max(1, len(counts) - 1)}:
        for name, limit in thresholds(valid, place).items():
            pairs = [cascade(one, limit, place) for one in test]
            correct, share = np.stack([right for right, _ in pairs]), pairs[0][1]
            ends = [np.mean([one.correct[end].mean() for one in test]) for end in (0, place)]
            over = float(correct.mean() - (1 - share) * ends[0] - share * ends[1])
            calls = 1 + share * counts[place - 1]
            rows.append(Row(data, vendor, f"cascade, {name}", counts[place - 1], calls, calls, correct, over))
    return sorted(rows, key=lambda row: (row.crops, row.cost))


def rows_of(plan: Plan, folder: Path) -> dict[tuple[str, str], tuple[list[Row], np.ndarray]]:
    """The rows of each stream that was measured with a seed at least, with the clusters of its images."""
    streams = {}
    for data, vendor in plan.streams:
        if not (seeds := seeds_of(plan, folder, data, vendor)):
            continue
        test = {look: read(folder, data, vendor, "test", look, seeds) for look in plan.looks}
        valid = read(folder, data, vendor, "validation", Look("random"), seeds)
        rows = [row for look, found in test.items() for row in fixed(data, vendor, look, found, plan.counts)]
        rows += cascades(data, vendor, test[Look("random")], valid, plan.counts)
        streams[data, vendor] = rows, test[Look("random")][0].clusters
    return streams


def baseline_of(rows: list[Row]) -> Row:
    """16 random crops for every image, the default; with fewer crops in the plan, the most."""
    return max((row for row in rows if row.way == "random" and row.crops <= 16), key=lambda row: row.crops)


def gain(row: Row, base: Row, clusters: np.ndarray) -> Comparison:
    """The paired difference over seeds and images."""
    return compare_runs(row.correct, base.correct, clusters=list(clusters) if clusters[0] else None)


def front(rows: list[Row]) -> set[int]:
    """Places of the rows that no other beats: at most their cost, and more accurate."""
    order = sorted(range(len(rows)), key=lambda place: (rows[place].cost, -rows[place].top1))
    kept, best = set(), -1.0
    for place in order:
        if rows[place].top1 > best:
            kept.add(place)
            best = rows[place].top1
    return kept


def fewest_crops(rows: list[Row], base: Row, clusters: np.ndarray) -> tuple[float, float]:
    """The interval of the fewest crops that are as good as the baseline; seeds and images (clusters) are resampled."""
    draw, (seeds, images) = np.random.default_rng(0), base.correct.shape
    units = np.unique(clusters, return_inverse=True)[1] if clusters[0] else np.arange(images)
    sums = np.zeros((len(rows) + 1, seeds, units.max() + 1))
    for place, row in enumerate([*rows, base]):
        np.add.at(sums[place].T, units, row.correct.T)
    drawn_units = draw.multinomial(sums.shape[2], np.full(sums.shape[2], 1 / sums.shape[2]), RESAMPLES)
    drawn_seeds = draw.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    right = np.einsum("rsu,bs,bu->br", sums, drawn_seeds, drawn_units, optimize=True)
    crops = np.where(right[:, :-1] >= right[:, -1:] - 1e-9, [row.crops for row in rows], np.inf).min(1)
    low, high = np.percentile(crops, [2.5, 97.5], method="nearest")
    return float(low), float(high)


def needed(rows: list[Row], clusters: np.ndarray, policies: tuple[str, ...]) -> list[list[object]]:
    """The fewest crops of each policy that are as good as the baseline with their interval, and those that stay within a point of it."""
    base, lines = baseline_of(rows), []
    for policy in policies:
        own = [row for row in rows if row.way == policy]
        gains = {row.crops: gain(row, base, clusters) for row in own}
        more = f"> {max(gains)}"
        good = min((crops for crops, got in gains.items() if got.difference >= 0), default=more)
        close = min((crops for crops, got in gains.items() if got.low >= -MARGIN), default=more)
        ends = [int(end) if np.isfinite(end) else more for end in fewest_crops(own, base, clusters)]
        lines.append([base.data, base.vendor, policy, good, *ends, close])
    return lines


def line_of(row: Row, base: Row, clusters: np.ndarray, on_front: bool) -> list[object]:
    """One line of results.csv, in percent where it is an accuracy."""
    got = gain(row, base, clusters)
    cells = [len(row.correct), row.correct.shape[1], f"{row.calls:.2f}", f"{row.cost:.2f}", f"{POINTS * row.top1:.2f}", *numbers(got)]
    over = "" if row.over_chance is None else f"{POINTS * row.over_chance:.2f}"
    return [row.data, row.vendor, row.way, row.crops, *cells, got.clusters or "", over, "yes" if on_front else ""]


def write(plan: Plan, folder: Path, output: Path) -> None:
    """Write the tables and the picture from the measurements."""
    streams = rows_of(plan, folder)
    lines, crops = [], []
    for rows, clusters in streams.values():
        best, base = front(rows), baseline_of(rows)
        lines += [line_of(row, base, clusters, place in best) for place, row in enumerate(rows)]
        crops += needed(rows, clusters, plan.policies)
    write_csv(output / "results.csv", HEADER, lines)
    write_csv(output / "needed.csv", NEEDED, crops)
    draw(lines, HEADER, output / "cost.png")
    print(summary([dict(zip(HEADER, line, strict=True)) for line in lines]))
    print(markdown(NEEDED, crops))


def main() -> None:
    words, small = [word for word in sys.argv[1:] if word != "--small"], "--small" in sys.argv
    folder = ROOT / "outputs" / ("cost_small" if small else "cost")
    if "--folder" in words:
        place = words.index("--folder")
        folder, words = Path(words[place + 1]), words[:place] + words[place + 2 :]
    plan = replace(SMALL if small else Plan(), overrides=tuple(words))
    for _ in measure_all(plan, folder, small):
        write(plan, folder, folder if small or words else OUTPUT)


if __name__ == "__main__":
    main()
