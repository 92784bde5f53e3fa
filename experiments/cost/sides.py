"""The embedded model trained at several sides, with crops of half its side.

python experiments/cost/sides.py [--seeds 0,1,2] [OVERRIDE ...] measures `model=tiny` and `model=tiny_sides`, or in place of the latter what
the overrides choose (such as model=local model.path=FOLDER). It writes sides.csv of what was measured so far beside this file: crops of
half the side against as many of the whole side (same model and policy), and every way against 16 random crops of `model=tiny` at the whole
side. What was measured before, by this script or by cost.py, is not measured again.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.cost.cost import Row, baseline_of, fixed, gain
from experiments.cost.streams import ROOT, Look, Plan, file_of, keep, read, session_of
from experiments.study import POINTS, markdown, numbers, with_interval, write_csv

from multicrop.config import register_resolvers
from multicrop.runs.sweep_cache import SweepCache

RECORD = Path(__file__).with_name("sides.csv")
TRAINED = "tiny_sides"
HALF = 48
LOOKS = (Look("random"), Look("random", HALF), Look("quasi_random", HALF))
HALVED, TINY = ("halved", "halved_low", "halved_high"), ("difference", "low", "high")
HEADER = ("data", "vendor", "model", "way", "crops", "seeds", "images", "cost", "top1", *HALVED, *TINY)
SHOWN = (("global view", 0), *product(("random", "quasi_random", f"random, {HALF} px", f"quasi_random, {HALF} px"), (8, 16)))


def measured(folder: Path, data: str, vendor: str, seeds: tuple[int, ...], counts: list[int]) -> tuple[list[Row], np.ndarray]:
    """The rows of one stream, and the clusters of its images."""
    rows, clusters = [], np.array([])
    for look in LOOKS:
        if all(file_of(folder, data, vendor, "test", look, seed).is_file() for seed in seeds):
            found = read(folder, data, vendor, "test", look, seeds)
            rows, clusters = rows + fixed(data, vendor, look, found, counts), found[0].clusters
    return rows, clusters


def lines_of(plan: Plan, folder: Path, tiny: Path) -> Iterator[list[object]]:
    """The lines of sides.csv; a stream has those crop seeds with which all of it was measured, with both models."""
    for data, vendor in plan.streams:
        wanted = [(folder, look) for look in LOOKS] + [(tiny, Look("random"))]
        seeds = tuple(s for s in plan.seeds if all(file_of(at, data, vendor, "test", look, s).is_file() for at, look in wanted))
        if not seeds:
            continue
        base = measured(tiny, data, vendor, seeds, plan.counts)[0]
        for model, at in ((TRAINED, folder), ("tiny", tiny)):
            rows, clusters = measured(at, data, vendor, seeds, plan.counts)
            whole = {(row.way, row.crops): row for row in rows}
            for row in rows:
                other = whole.get((row.way.removesuffix(f", {HALF} px"), row.crops))
                halved = [""] * 3 if other in (row, None) else numbers(gain(row, other, clusters))
                numbered = [row.crops, len(seeds), row.correct.shape[1], f"{row.cost:.2f}", f"{POINTS * row.top1:.2f}"]
                yield [data, vendor, model, row.way, *numbered, *halved, *numbers(gain(row, baseline_of(base), clusters))]


def table(lines: list[list[object]], columns: tuple[str, ...], model: str) -> str:
    """One difference with its interval per way and stream."""
    rows = [dict(zip(HEADER, line, strict=True)) for line in lines]
    streams = list(dict.fromkeys((row["data"], row["vendor"]) for row in rows))
    found = {(row["data"], row["vendor"], row["way"], row["crops"]): row for row in rows if row["model"] == model}
    shown = []
    for way, crops in SHOWN:
        cells = [found[*stream, way, crops] for stream in streams if (*stream, way, crops) in found]
        if len(cells) == len(streams) and all(cell[columns[0]] for cell in cells):
            points = [with_interval([cell[name] for name in columns]) for cell in cells]
            shown.append([f"{way}, {crops} crops" if crops else way, f"{np.mean([float(str(c['cost'])) for c in cells]):.1f}", *points])
    return markdown(["way", "cost", *(f"{data}, {vendor}" for data, vendor in streams)], shown)


def main() -> None:
    """Measure what is missing, and write the record after each stream."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=ROOT / "outputs" / "cost", help="measurements of model=tiny, also those of cost.py")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "cost_sides")
    parser.add_argument("--seeds", type=lambda text: tuple(map(int, text.split(","))), default=(0, 1, 2), help="crop seeds: 0,1,2")
    parser.add_argument("overrides", nargs="*", default=["model=tiny_sides"], help="of run.py: the model")
    knobs = parser.parse_args()
    plan, cache = Plan(seeds=knobs.seeds), SweepCache()
    register_resolvers()
    for folder in (knobs.base, knobs.folder):
        folder.mkdir(parents=True, exist_ok=True)
    models = ((knobs.base, ["model=tiny"]), (knobs.folder, knobs.overrides))
    for seed, (data, vendor) in product(plan.seeds, plan.streams):
        for (folder, overrides), look in product(models, LOOKS):
            session = session_of(data, vendor, look, seed, plan.most, ("split=test", *overrides), cache)
            keep(file_of(folder, data, vendor, "test", look, seed), session, plan.counts)
        lines = list(lines_of(plan, knobs.folder, knobs.base))
        write_csv(RECORD, HEADER, lines)
        for columns in (HALVED, TINY):
            print(table(lines, columns, TRAINED))


if __name__ == "__main__":
    main()
