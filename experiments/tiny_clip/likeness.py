"""How alike the test drawings are to the training drawings of the same concept: writes experiments/tiny_clip/likeness.csv.

Likeness is the largest Pearson correlation of the pixels on white with a training drawing of the concept. Usage:
python experiments/tiny_clip/likeness.py
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from multicrop.data.embedded.artwork import HELD_OUT_VENDORS, TRAINING_VENDORS, Drawing, load_drawings

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/study.py
from experiments.study import write_csv

THRESHOLDS = (0.9, 0.95)
SIDE = 48  # pixels: half the side, so that the position of a thin line weighs less than the shape


def standardised(drawing: Drawing) -> np.ndarray:
    """The pixels on white with zero mean and unit norm."""
    white = Image.alpha_composite(Image.new("RGBA", drawing.image.size, "white"), drawing.image).convert("RGB")
    pixels = np.asarray(white.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64).ravel()
    pixels -= pixels.mean()
    return pixels / np.linalg.norm(pixels)


def likeness(tested: list[Drawing], training: list[Drawing]) -> np.ndarray:
    """The largest correlation of each tested drawing with a training drawing of its concept; drawings without one are left out."""
    known: dict[str, list[np.ndarray]] = {}
    for drawing in training:
        known.setdefault(drawing.concept, []).append(standardised(drawing))
    return np.array([max(standardised(d) @ other for other in known[d.concept]) for d in tested if d.concept in known])


def main() -> None:
    """One row per held-out vendor, and per training vendor against the four others."""
    rows = []
    for vendor in (*HELD_OUT_VENDORS, *TRAINING_VENDORS):
        others = tuple(other for other in TRAINING_VENDORS if other != vendor)
        values = likeness(load_drawings((vendor,), unseen=False), load_drawings(others, unseen=False))
        shares = [f"{100 * (values > threshold).mean():.1f}" for threshold in THRESHOLDS]
        rows.append([vendor, "held out" if vendor in HELD_OUT_VENDORS else "training", len(values), f"{np.median(values):.3f}", *shares])
    header = ["vendor", "role", "drawings", "median", *(f"percent_above_{threshold}" for threshold in THRESHOLDS)]
    write_csv(Path(__file__).with_name("likeness.csv"), header, rows)


if __name__ == "__main__":
    main()
