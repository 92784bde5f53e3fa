"""Choose the settings of aggregator=dnd_fused on validation scenes: python experiments/diagnosis/choose.py [--output FILE] [OVERRIDE ...].

Runs sweep=dnd_fused (finished runs are skipped), writes choice.csv and prints it. The setting with the highest accuracy is chosen; of
equal ones the first line of the table. `--output experiments/diagnosis/choice_tiny.csv model=tiny` measures the default model.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from multicrop.compare.data_seeds import pooled
from multicrop.compare.run import Run
from multicrop.compare.statistics import compare

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for experiments/study.py
from experiments.study import POINTS, markdown, numbers, read_runs, write_csv

OUTPUT = Path(__file__).parent / "choice.csv"
HEADER = "min_side", "max_side", "view_set", "fusion_weight", "top1", "difference", "low", "high", "images", "clusters", "chosen"
Setting = tuple[float, float, str, float]


def setting(run: Run) -> Setting:
    """Sides of the crops, views that are matched, weight of their logits."""
    crop, aggregator = run.config["crop"], run.config["aggregator"]
    return crop["min_side"], crop["max_side"], aggregator["view_set"], run.config["task"]["fusion_weight"]


def table(runs: list[Run]) -> list[list[object]]:
    """One line per setting: accuracy, difference to the global view with its interval over clusters, and whether it is chosen.

    Raises:
        SystemExit: If a run scored other images than those of the validation split.
    """
    if any(run.config["split"] != "validation" for run in runs):
        raise SystemExit("a choice reads validation images alone; pass a folder of runs with split=validation")
    found = {setting(run): run.sorted_predictions for run in sorted(pooled(runs), key=setting)}
    best = max(found, key=lambda name: found[name].accuracy())
    lines = []
    for name, scored in found.items():
        gain = compare(scored.correct(), scored.correct("global"), clusters=scored.cluster)
        top, chosen = f"{POINTS * scored.accuracy():.2f}", "yes" if name == best else ""
        lines.append([*name, top, *numbers(gain), len(scored), gain.clusters or "", chosen])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    knobs, overrides = parser.parse_known_args()
    runs = ROOT / "outputs" / f"dnd_fused_{knobs.output.stem}"
    command = [sys.executable, "run.py", "-m", "sweep=dnd_fused", "logger=none", f"paths.output={runs}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    lines = table(read_runs(runs))
    write_csv(knobs.output, HEADER, lines)
    print(markdown(HEADER, lines))


if __name__ == "__main__":
    main()
