"""What test labels would have chosen, and what each criterion without labels chooses.

Command: python experiments/choose/oracle.py [--output FILE] OVERRIDE ...

Scores all settings of task=choose on the test images of one stream, such as `dataset=scenes corruption=common corruption.kind=fog`, and
writes the stream's lines of oracle.csv, or FILE. The oracle reads the labels that it is scored on: it is a bound, not a method.
"""

import argparse
import csv
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir

from multicrop.compare.label_free import CRITERIA, choose_without_labels
from multicrop.compare.statistics import compare
from multicrop.config import register_resolvers
from multicrop.runs import choose
from multicrop.runs.choose_budget import Budget
from multicrop.runs.choose_scores import Scored
from multicrop.runs.session import Session
from multicrop.runs.settings import settings_of
from multicrop.runs.sweep_cache import SweepCache

ROOT, OUTPUT = Path(__file__).parents[2], Path(__file__).parent / "oracle.csv"
sys.path.insert(0, str(ROOT))  # for experiments/study.py
from experiments.choose.tables import stream_of
from experiments.study import POINTS, markdown, numbers, write_csv

HEADER = ("stream", "by", "setting", "images", "global", "top1", "difference", "low", "high", "clusters")


def lines_of(stream: str, scored: Scored, gate: float) -> list[list[object]]:
    """What the labels and each criterion choose, against the global view."""
    rows = {"test labels (oracle)": int(scored.correct.mean(1).argmax())}
    rows |= {name: choose_without_labels(name, scored.unlabelled, gate=gate) for name in CRITERIA}
    lines = []
    for by, row in rows.items():
        correct, whole = scored.correct[row], scored.correct[0]
        gain = compare(correct, whole, clusters=scored.clusters)
        facts = [stream, by, str(scored.settings[row]), len(whole), f"{POINTS * whole.mean():.2f}", f"{POINTS * correct.mean():.2f}"]
        lines.append([*facts, *numbers(gain), gain.clusters or ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    knobs, overrides = parser.parse_known_args()
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["task=choose", "task.labels=none", "logger=none", *overrides])
    settings = settings_of(cfg)
    session = Session(settings, SweepCache())
    (images,) = choose.images_to_choose_on(session, **settings.task_knobs)
    lines = lines_of(stream_of(session.dataset.name, settings.config), choose.search(session, images, Budget()), settings.task["gate"])
    kept: list[list[str]] = []
    if knobs.output.is_file():
        with knobs.output.open(newline="", encoding="utf-8") as file:
            kept = [row for row in list(csv.reader(file))[1:] if row[0] != lines[0][0]]
    write_csv(knobs.output, HEADER, sorted([*kept, *lines], key=lambda row: row[0]))
    print(markdown(HEADER, lines))


if __name__ == "__main__":
    main()
