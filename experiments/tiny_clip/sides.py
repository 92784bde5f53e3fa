"""Compare recipes of distillation at several sides on a training vendor that is left out: writes experiments/tiny_clip/sides.csv.

Each setting is trained for a few steps from the shipped weights without the vendor, then measured with crops of each side: D&D fused with
the global view on the vendor's scenes (16 random crops; against the shipped weights at the whole side, paired), and the views of its
restyled drawings (344 classes). No test vendor is measured. The rule: the setting with the highest mean of the two at 48 px, among those
that lose at most one point of scenes at 96 px. A row that the file has is not computed again. `--finished` measures a finished training of
all vendors. Usage:
python experiments/tiny_clip/sides.py --restyled FOLDER [--steps 120] [--vendors noto ...] [--settings all ...] [--finished CHECKPOINT]
"""

import argparse
import csv
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from multicrop.compare.statistics import compare_runs
from multicrop.config import EMBEDDED_MODEL, register_resolvers
from multicrop.encoder import load_encoder
from multicrop.pretrain.data import DataKnobs
from multicrop.pretrain.distil import resized
from multicrop.pretrain.train import Recipe, pretrain
from multicrop.runs.sweep_cache import SweepCache

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.cost.streams import Look, Measured, measure, session_of
from experiments.study import write_csv
from experiments.tiny_clip.leave_one_out import LeftOut, accuracy

RECORD = Path(__file__).with_name("sides.csv")
HEADER = ["setting", "vendor", "steps", "side", "scenes", "difference", "low", "high", "restyled"]
CROPS = 16
SIDES = (96, 64, 48)
DATA = DataKnobs(restyled_share=0.7, scene_share=0.7, whole_share=0.4)
RECIPE = Recipe(
    steps=120,
    batch_size=100,
    seed=1,
    train_text=False,
    lr=8e-4,
    warmup_steps=20,
    decay_share=0.45,
    init="embedded",
    teacher="embedded",
    sides=[48, 48, 48, 64, 96],
    precision="32-true",
)
SETTINGS = {f"rate {rate:g}": replace(RECIPE, lr=rate) for rate in (8e-4, 1.6e-3)}


def scenes_of(vendor: str, checkpoint: Path, side: int) -> Measured:
    """Which validation scenes by the vendor are right with the crops of one side, one crop seed."""
    options = [f"dataset.leave_out={vendor}", "split=validation", "dataset.validation_images=10", "model=local", f"model.path={checkpoint}"]
    look = Look("random", None if side == SIDES[0] else side)
    session = session_of("scenes", "noto-v1", look, 0, CROPS, (*options, 'model.facts.template="{}"'), SweepCache())
    return measure(session, [CROPS])


class Vendor:
    """The images of one vendor that is left out, and what the shipped weights make of its scenes."""

    def __init__(self, vendor: str, restyled: Path) -> None:
        self.vendor, self.drawings = vendor, LeftOut(vendor, restyled)
        self.base = scenes_of(vendor, EMBEDDED_MODEL, SIDES[0])

    def rows(self, checkpoint: Path) -> list[list[str]]:
        """One row per side."""
        encoder, found = load_encoder(path=str(checkpoint)), []
        pixels, labels = self.drawings.parts["restyled"]
        for side in SIDES:
            scenes = scenes_of(self.vendor, checkpoint, side)
            gain = compare_runs(scenes.correct[-1:], self.base.correct[-1:], clusters=list(scenes.clusters))
            points = [f"{100 * value:.1f}" for value in (np.mean(scenes.correct[-1]), gain.difference, gain.low, gain.high)]
            with torch.inference_mode():
                found.append([str(side), *points, accuracy(encoder, resized(pixels, side), labels, self.drawings.names)])
        return found


def main() -> None:
    """Train and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restyled", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--vendors", nargs="+", default=["noto"])
    parser.add_argument("--settings", nargs="+", choices=["before", *SETTINGS], default=["before", *SETTINGS])
    parser.add_argument("--output", type=Path, default=None, help="folder of the trainings, which are resumed; default: a temporary one")
    parser.add_argument("--finished", type=Path, default=None, help="checkpoint of a finished training; nothing is trained")
    knobs = parser.parse_args()
    register_resolvers()
    known = list(csv.reader(RECORD.read_text(encoding="utf-8").splitlines()))[1:] if RECORD.exists() else []
    for vendor in knobs.vendors:
        images = None
        for setting in ["final"] if knobs.finished else knobs.settings:
            key = [setting, vendor, "0" if setting == "before" else str(knobs.steps)]
            if any(line[:3] == key for line in known):
                continue
            images = images or Vendor(vendor, knobs.restyled)
            with tempfile.TemporaryDirectory() as made:
                known += [[*key, *row] for row in images.rows(trained(knobs, vendor, setting, knobs.output or Path(made)))]
            write_csv(RECORD, HEADER, known)


def trained(knobs: argparse.Namespace, vendor: str, setting: str, output: Path) -> Path:
    """The checkpoint of a setting without the vendor: the shipped, the finished or a new one."""
    if setting == "before":
        return EMBEDDED_MODEL
    if knobs.finished:
        return knobs.finished
    data = replace(DATA, restyled=str(knobs.restyled), leave_out=vendor)
    recipe = replace(SETTINGS[setting], steps=knobs.steps)
    return pretrain(recipe, data, output=output / f"{vendor}-{setting.replace(' ', '_')}", num_workers=0)[1]


if __name__ == "__main__":
    main()
