"""Choose settings on validation images: python experiments/diagnosis/choose.py [--sweep NAME] [--output FILE] [OVERRIDE ...].

Runs the sweep (finished runs are skipped), writes the table and prints it. The setting with the highest accuracy is chosen; of equal ones
the first line of the table.

- `--sweep dnd_fused` (default, choice.csv): sides, views and weight of aggregator=dnd_fused, on validation scenes.
  `--output experiments/diagnosis/choice_tiny.csv model=tiny` measures the default model.
- `--sweep emoji_facts` (choice_emoji.csv): sides and form of the prompts of dataset=emoji, on the drawings of each training vendor in turn.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multicrop.compare.data_seeds import pooled
from multicrop.compare.run import Run
from multicrop.compare.statistics import compare
from multicrop.record import Predictions

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for experiments/study.py
from experiments.study import POINTS, markdown, numbers, read_runs, write_csv

FOLDER = Path(__file__).parent
MEASURED = "top1", "difference", "low", "high", "images", "clusters", "chosen"


@dataclass(frozen=True)
class Choice:
    """What a sweep varies: the columns of its settings, each with the path of the knob, and the file of the table."""

    columns: Mapping[str, str]
    file: str

    @property
    def header(self) -> list[str]:
        """The columns of the table."""
        return [*self.columns, *MEASURED]

    def setting(self, run: Run) -> tuple:
        """The setting of a run."""
        return tuple(run.knobs[knob] for knob in self.columns.values())


SIDES = {"min_side": "crop.min_side", "max_side": "crop.max_side"}
CHOICES = {
    "dnd_fused": Choice({**SIDES, "view_set": "aggregator.view_set", "fusion_weight": "task.fusion_weight"}, "choice.csv"),
    "emoji_facts": Choice({**SIDES, "description_prompt": "dataset.facts.description_prompt"}, "choice_emoji.csv"),
}


def table(runs: list[Run], choice: Choice = CHOICES["dnd_fused"]) -> list[list[object]]:
    """One line per setting: accuracy, difference to the global view with its interval over clusters, and whether it is chosen.

    Raises:
        SystemExit: If a run scored other images than those of the validation split.
    """
    if any(run.config["split"] != "validation" for run in runs):
        raise SystemExit("a choice reads validation images alone; pass a folder of runs with split=validation")
    found: dict[tuple, list[Predictions]] = {}
    for run in sorted(pooled(runs), key=choice.setting):
        found.setdefault(choice.setting(run), []).append(run.sorted_predictions)
    correct = {name: [np.concatenate([one.correct(row) for one in parts]) for row in ("final", "global")] for name, parts in found.items()}
    best = max(correct, key=lambda name: correct[name][0].mean())
    lines = []
    for name, (right, whole) in correct.items():
        gain = compare(right, whole, clusters=[cluster for one in found[name] for cluster in one.cluster])
        top, chosen = f"{POINTS * right.mean():.2f}", "yes" if name == best else ""
        lines.append([*name, top, *numbers(gain), len(right), gain.clusters or "", chosen])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", choices=CHOICES, default="dnd_fused")
    parser.add_argument("--output", type=Path)
    knobs, overrides = parser.parse_known_args()
    choice = CHOICES[knobs.sweep]
    output = knobs.output or FOLDER / choice.file
    runs = ROOT / "outputs" / f"{knobs.sweep}_{output.stem}"
    command = [sys.executable, "run.py", "-m", f"sweep={knobs.sweep}", "logger=none", f"paths.output={runs}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    lines = table(read_runs(runs), choice)
    write_csv(output, choice.header, lines)
    print(markdown(choice.header, lines))


if __name__ == "__main__":
    main()
