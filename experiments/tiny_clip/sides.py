"""What distillation at several sides keeps and gains, on training vendors alone: writes experiments/tiny_clip/sides.csv.

For each share of the initial weights in the average, and for crops of each side: D&D fused with the global view on validation scenes of a
training vendor (16 random crops; against the shipped weights at the whole side, paired), and its restyled drawings seen at that side (344
classes). No test vendor is measured. The rule, fixed before the weights were measured: the share whose restyled drawings at 48 px are most
often right, mean over the vendors (scenes are near their ceiling). A row that the file has is not computed again. Instead,
`--distances` prints how far features of composed crops at each side are from those of the shipped weights at 96 px, also after a reduction
to that side and back (what the pixels alone lose), and `--export` writes the average with one share. Usage:
python experiments/tiny_clip/sides.py CHECKPOINT --restyled FOLDER [--vendors noto ...] [--distances]
python experiments/tiny_clip/sides.py CHECKPOINT --shares 0.2 --export FOLDER
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import CLIPModel

from multicrop.compare.statistics import compare_runs
from multicrop.config import EMBEDDED_MODEL, register_resolvers
from multicrop.data.embedded.artwork import load_concepts
from multicrop.encoder import load_encoder
from multicrop.pretrain.checkpoint import Start, export
from multicrop.pretrain.data import DataKnobs, training_data
from multicrop.pretrain.distil import resized
from multicrop.runs.sweep_cache import SweepCache

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.cost.streams import Look, Measured, measure, session_of
from experiments.study import markdown, write_csv
from experiments.tiny_clip.leave_one_out import LeftOut, accuracy

RECORD = Path(__file__).with_name("sides.csv")
HEADER = ["vendor", "init_share", "side", "scenes", "difference", "low", "high", "restyled"]
CROPS = 16
SIDES = (96, 64, 48)
INIT_SHARES = (1.0, 0.0, 0.2, 0.4)  # 1: the weights of model=tiny


def scenes_of(vendor: str, checkpoint: Path, side: int) -> Measured:
    """Which validation scenes by the vendor are right with the crops of one side, one crop seed."""
    options = [f"dataset.leave_out={vendor}", "split=validation", "model=local", f"model.path={checkpoint}", 'model.facts.template="{}"']
    look = Look("random", None if side == SIDES[0] else side)
    return measure(session_of("scenes", "noto-v1", look, 0, CROPS, tuple(options), SweepCache()), [CROPS])


class Vendor:
    """The images of one vendor, and what the shipped weights make of its scenes."""

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


@torch.inference_mode()
def distances(checkpoint: Path, restyled: Path) -> list[list[str]]:
    """Cosine distance to the shipped weights at the whole side: shipped weights, the same from reduced pixels, and the checkpoint."""
    concepts = [concept for concept in load_concepts() if not concept["unseen"]]
    composer, _ = training_data(concepts, DataKnobs(restyled=str(restyled), restyled_share=0.7, scene_share=0.7, whole_share=0.0))
    images = composer(192, torch.Generator().manual_seed(99)).images
    shipped, trained = load_encoder(path="tiny"), load_encoder(path=str(checkpoint))
    whole, rows = shipped.encode_images(images), []
    for side in SIDES:
        small = resized(images, side)
        seen = (shipped.encode_images(small), shipped.encode_images(resized(small, SIDES[0])), trained.encode_images(small))
        rows.append([str(side), *(f"{1 - (views * whole).sum(1).mean().item():.3f}" for views in seen)])
    return rows


def average(checkpoint: Path, share: float, folder: Path) -> Path:
    """Export the trained weights with a share of those of `model=tiny`; what the training wrote into the metadata stays there."""
    start, model = Start.from_checkpoint("embedded"), CLIPModel.from_pretrained(checkpoint, dtype=torch.float32)
    model.load_state_dict(start.averaged(model.state_dict(), share))
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        made_from = {name: json.loads(value) for name, value in (file.metadata() or {}).items() if name != "format"}
    export(model, start.tokenizer, folder, made_from | {"embedded_share": share})
    return folder


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="what task=pretrain exported with task.init_share=0")
    parser.add_argument("--restyled", type=Path, help="the bank that task=pretrain read; --export does without")
    parser.add_argument("--vendors", nargs="+", default=["noto", "twemoji"])
    parser.add_argument("--shares", nargs="+", type=float, default=INIT_SHARES)
    parser.add_argument("--distances", action="store_true", help="print distances of features, measure nothing else")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the average with the only one of --shares, measure nothing")
    knobs = parser.parse_args()
    if knobs.export:
        (share,) = knobs.shares
        average(knobs.checkpoint, share, knobs.export)
        return
    if knobs.restyled is None:
        parser.error("--restyled FOLDER is needed to measure; make it by `make restyle`")
    if knobs.distances:
        print(markdown(["side", "shipped", "shipped, enlarged", "checkpoint"], distances(knobs.checkpoint, knobs.restyled)))
        return
    register_resolvers()
    known = list(csv.reader(RECORD.read_text(encoding="utf-8").splitlines()))[1:] if RECORD.exists() else []
    for name in knobs.vendors:
        vendor = None
        for share in knobs.shares:
            if [name, str(share)] in [line[:2] for line in known]:
                continue
            vendor = vendor or Vendor(name, knobs.restyled)
            with tempfile.TemporaryDirectory() as made:
                rows = vendor.rows(average(knobs.checkpoint, share, Path(made) / "average"))
            known += [[name, str(share), *row] for row in rows]
            write_csv(RECORD, HEADER, known)


if __name__ == "__main__":
    main()
