"""The tables of the overview from `multicrop compare ... -o results.csv`: python experiments/overview/tables.py [RESULTS]."""

import csv
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from multicrop.compare.tables import interval, probability

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.study import POINTS, bold, markdown

RESULTS = Path(__file__).parent / "results.csv"
CROPS = ("random_k16", "quasi_random", "diverse", "grid", "ten_crop", "attention", "feature")
TOP = 10  # methods in the table of the best
Row = Mapping[str, str]


def read(path: Path) -> list[Row]:
    """The methods of a table that `multicrop compare` wrote as CSV."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["table"] == "methods"]


def grid(rows: Iterable[Row]) -> str:
    """Aggregators by crop policies, top-1 in percent; bold where p is below 0.05 after Holm."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        aggregator, _, crop = row["method"].partition(", ")
        if crop in CROPS and aggregator != "global":
            found = f"{POINTS * float(row['accuracy']):.1f}"
            cells.setdefault(aggregator, {})[crop] = bold(found, float(row["p_holm"] or 1))
    return markdown(["", *CROPS], [[name, *(line.get(crop, "") for crop in CROPS)] for name, line in cells.items()])


def methods(rows: Iterable[Row]) -> str:
    """One line per method, best first: top-1, difference to the global view with its interval, p after Holm, rescued and lost images."""
    shown = [row for row in rows if not row["method"].startswith("global, ")]  # the global view again
    best = sorted(shown, key=lambda row: -float(row["accuracy"]))
    return markdown(["method", "top-1 %", "against the global view", "p (Holm)", "rescued/lost"], map(_line, best))


def _line(row: Row) -> list[str]:
    spread = f" ± {POINTS * float(row['spread']):.1f}" if int(row["runs"]) > 1 else ""
    gain = interval({name: float(row[name]) for name in ("difference", "low", "high")}) if row["difference"] else ""
    p = probability(float(row["p_holm"]) if row["p_holm"] else None)
    return [row["method"], f"{POINTS * float(row['accuracy']):.1f}{spread}", gain, p, f"{row['rescued']}/{row['lost']}" if gain else ""]


def main() -> None:
    rows = read(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
    for data in dict.fromkeys(row["data"] for row in rows):
        for task in dict.fromkeys(row["task"] for row in rows if row["data"] == data):
            own = [row for row in rows if row["data"] == data and row["task"] == task]
            print(f"\n### {data}, {task}\n")
            if task == "zero_shot":
                print(grid(own), end="\n\n")
                own = sorted(own, key=lambda row: -float(row["accuracy"]))[:TOP]
            print(methods(own))


if __name__ == "__main__":
    main()
