"""Draw the curves of a pretraining run: python experiments/tiny_clip/curves.py METRICS.csv PICTURE.png."""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from multicrop.files import save_figure

SMOOTH = 20  # logged points a mean runs over


def main() -> None:
    """Read Lightning's metrics.csv and draw accuracy and the four losses against steps."""
    with Path(sys.argv[1]).open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    steps = np.array([int(row["step"]) + 1 for row in rows])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, names in ((left, ["accuracy"]), (right, ["concept", "patch", "phrase", "scene"])):
        for name in names:
            values = np.array([float(row[f"train/{name}"]) for row in rows])
            mean = np.convolve(values, np.ones(SMOOTH) / SMOOTH, mode="valid")
            axis.plot(steps[SMOOTH - 1 :], 100 * mean if name == "accuracy" else mean, label=name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    left.set_ylabel("training top-1, %")
    right.set_ylabel("loss")
    right.legend()
    save_figure(figure, Path(sys.argv[2]), dpi=120)


if __name__ == "__main__":
    main()
