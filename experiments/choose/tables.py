"""The table of the study from its records: python experiments/choose/tables.py [FOLDER [FILE]]. Writes FILE (results.csv), prints it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multicrop.compare.run import Run
from multicrop.compare.statistics import compare

ROOT, OUTPUT = Path(__file__).parents[2], Path(__file__).parent / "results.csv"
sys.path.insert(0, str(ROOT))  # for experiments/study.py
from experiments.study import POINTS, markdown, numbers, read_runs, write_csv

HEADER = (
    *("stream", "chosen_on", "labelled", "chosen", "gain", "gain_low", "gain_high", "highest", "expected", "optimism"),
    *("images", "global", "top1", "difference", "low", "high", "clusters"),
)


def stream_of(dataset: str, config: Mapping[str, Any]) -> str:
    """The stream of a run: data set, vendors of the test images, corruption."""
    values, corruption = config["dataset"], config.get("corruption") or {}
    vendors = values.get("vendor") or "+".join(values.get("vendors") or [])
    kind = f"{corruption['kind']} {corruption['severity']}" if "kind" in corruption else "clean"
    return ", ".join([dataset.split("-")[0], *([vendors] if vendors else []), kind])


def line_of(run: Run) -> list[object]:
    """One stream: what was chosen, what cross-fitting and bootstrap expected of it, and what the test images say."""
    choice, scored = run.metrics["choice"], run.sorted_predictions
    gain = compare(scored.correct(), scored.correct("global"), clusters=scored.cluster)
    crossed, optimism = choice["gain"], choice["optimism"]
    expected = [f"{POINTS * crossed[name]:.2f}" for name in ("value", "low", "high")]
    expected += [f"{POINTS * value:.2f}" for value in (choice["highest"]["accuracy"], choice["corrected"]["value"], optimism["value"])]
    measured = [len(scored), f"{POINTS * scored.accuracy('global'):.2f}", f"{POINTS * scored.accuracy():.2f}", *numbers(gain)]
    chosen_on = "training" if choice["chosen_on"].startswith("training") else "validation"
    labelled = "" if run.config["task"]["like_test"] else " (clean)"
    stream = stream_of(run.data["dataset"], run.config)
    return [stream, chosen_on + labelled, choice["images"], choice["setting"], *expected, *measured, gain.clusters or ""]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs" / "choose"
    newest = {(line[0], line[1]): line for line in (line_of(run) for run in read_runs(folder) if "choice" in run.metrics)}
    lines = [newest[key] for key in sorted(newest)]
    write_csv(Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT, HEADER, lines)
    print(markdown(HEADER, lines))


if __name__ == "__main__":
    main()
