"""Compare pretraining recipes on training vendors that are left out in turn: writes experiments/tiny_clip/leave_one_out.csv.

Each setting is trained for a few steps from the shipped weights without one vendor, then measured by the global view on that vendor's
single drawings, restyled drawings (344 classes) and scenes, for several shares of the initial weights in the average. No test vendor is
measured. The initial weights have seen the vendor's drawings as they are, so drawings and scenes show what is kept, restyled drawings what
is gained. A row that the file has is not computed again. `--finished CHECKPOINT` measures the averages of a finished training of all
vendors (setting `final`): it has seen all of their drawings, so these rows show what an average keeps of the initial weights. Usage:
python experiments/tiny_clip/leave_one_out.py --restyled FOLDER [--steps 100] [--vendors twemoji ...] [--settings crops whole ...]
python experiments/tiny_clip/leave_one_out.py --restyled FOLDER --finished CHECKPOINT --vendors twemoji noto emojione fluent-flat fxemoji
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel

from multicrop.data.base import LabelledImages
from multicrop.data.embedded.emoji import emoji
from multicrop.data.embedded.scenes import scenes
from multicrop.encoder import Encoder, load_encoder
from multicrop.pretrain.checkpoint import Start, export
from multicrop.pretrain.data import DataKnobs
from multicrop.pretrain.restyle import RestyledBank
from multicrop.pretrain.train import Recipe, pretrain

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.study import write_csv

RECORD = Path(__file__).with_name("leave_one_out.csv")
HEADER = ["setting", "vendor", "steps", "init_share", "drawings", "restyled", "scenes"]
SETTINGS = {
    "crops": DataKnobs(scene_share=0.6, whole_share=0.25, restyled_share=0.75),
    "whole": DataKnobs(scene_share=0.7, whole_share=0.4, restyled_share=0.7),
    "originals": DataKnobs(scene_share=0.7, whole_share=0.4, restyled_share=0.5),
}
RECIPE = Recipe(
    steps=100,
    batch_size=96,
    seed=1,
    train_text=False,
    phrases=96,
    lr=8e-4,
    warmup_steps=20,
    init="embedded",
    precision="32-true",
)
INIT_SHARES = (0.0, 0.2, 0.4, 0.6, 1.0)  # 1: the shipped weights
SCENES = {
    "vendor": "noto-v1",
    "n_classes": 40,
    "family_size": 4,
    "n_objects": 4,
    "object_side": (0.30, 0.42),
    "distractors": 0,
    "background": "mixed",
}
SCENES |= {"canvas": 240, "test_images": 1, "train_images": 1, "validation_images": 10, "dataset_seed": 0}


def pixels_of(images: Iterable[Image.Image], side: int = 96) -> torch.Tensor:
    """The global views, uint8 (n, 3, side, side)."""
    views = [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def accuracy(encoder: Encoder, pixels: torch.Tensor, labels: list[int], class_names: list[str]) -> str:
    """Top-1 of the global view against the label prompts, in percent."""
    with torch.inference_mode():
        features = torch.cat([encoder.encode_images(part) for part in pixels.split(128)])
        best = (features @ encoder.encode_texts(class_names).T).argmax(1)
    return f"{100 * (best == torch.tensor(labels)).float().mean().item():.1f}"


class LeftOut:
    """The images of one vendor, decoded once: single drawings, restyled drawings, scenes."""

    def __init__(self, vendor: str, restyled: Path) -> None:
        drawings, composed = emoji(vendors=["noto-v1"], group="all", unseen=False, leave_out=vendor), scenes(leave_out=vendor, **SCENES)
        bank = RestyledBank(restyled, vendors=(vendor,))
        row = {name.split("/")[1]: label for name, label in zip(drawings.validation.ids, drawings.validation.labels, strict=True)}
        rgba = bank[torch.arange(0, len(bank), 7)]  # two styles per drawing
        self.names, self.scene_names = drawings.class_names, composed.class_names
        self.parts = {
            "drawings": (self._opened(drawings.validation), drawings.validation.labels),
            "restyled": (self._on_white(rgba), [row[concept] for concept in bank.concepts[::7]]),
            "scenes": (self._opened(composed.validation), composed.validation.labels),
        }

    def _opened(self, images: LabelledImages) -> torch.Tensor:
        return pixels_of(images.open(index) for index in range(len(images)))

    def _on_white(self, rgba: torch.Tensor) -> torch.Tensor:
        alpha = rgba[:, 3:].float() / 255
        return (rgba[:, :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)

    def measured(self, checkpoint: Path) -> list[str]:
        """The three accuracies of a checkpoint."""
        encoder = load_encoder(path=str(checkpoint))
        return [accuracy(encoder, *part, self.scene_names if name == "scenes" else self.names) for name, part in self.parts.items()]


def averages(checkpoint: Path, folder: Path, vendor: LeftOut) -> list[list[str]]:
    """The accuracies of each average of the trained weights with the initial ones."""
    start, trained, rows = Start.from_checkpoint("embedded"), CLIPModel.from_pretrained(checkpoint, dtype=torch.float32), []
    weights = trained.state_dict()
    for share in INIT_SHARES:
        trained.load_state_dict(start.averaged(weights, share))
        export(trained, start.tokenizer, folder, {})
        rows.append([str(share), *vendor.measured(folder)])
    return rows


def main() -> None:
    """Train and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restyled", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--vendors", nargs="+", default=["twemoji", "noto", "emojione"])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=None, help="folder of the trainings, which are resumed; default: a temporary one")
    parser.add_argument("--finished", type=Path, default=None, help="checkpoint of a finished training; nothing is trained")
    knobs = parser.parse_args()
    known = list(csv.reader(RECORD.read_text(encoding="utf-8").splitlines()))[1:] if RECORD.exists() else []
    settings = ["final"] if knobs.finished else knobs.settings
    for vendor, setting in ((vendor, setting) for vendor in knobs.vendors for setting in settings):
        if any(line[:3] == [setting, vendor, str(knobs.steps)] for line in known):
            continue
        with tempfile.TemporaryDirectory() as made:
            rows = measure(knobs, vendor, setting, Path(made))
        known += [[setting, vendor, str(knobs.steps), *row] for row in rows]
        write_csv(RECORD, HEADER, known)


def measure(knobs: argparse.Namespace, vendor: str, setting: str, made: Path) -> list[list[str]]:
    """The rows of one vendor and setting, after a training without the vendor unless the training is finished."""
    checkpoint = knobs.finished
    if checkpoint is None:
        output = (knobs.output or made) / f"{vendor}-{setting}"
        data = replace(SETTINGS[setting], restyled=str(knobs.restyled), leave_out=vendor)
        _, checkpoint = pretrain(replace(RECIPE, steps=knobs.steps), data, output=output, num_workers=0)
    return averages(checkpoint, made / "average", LeftOut(vendor, knobs.restyled))


if __name__ == "__main__":
    main()
