"""Tables and pictures of experiments/tta from the records of `sweep=streams`: python benchmarks/tta.py FOLDER [OUTPUT]."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from matplotlib.figure import Figure
from study import POINTS, markdown, numbers, points, write_csv

from multicrop.stats import Comparison, compare_runs, holm

OUTPUT = Path(__file__).parent.parent / "experiments/tta"
SETTINGS = {"global_view": "global view", "crops_mean": "crops, mean", "dnd": "D&D"}
METHODS = ("tda", "dmn", "bca", "boost", "tent", "mta", "zero", "tpt", "c_tpt")
COLOURS = dict(
    zip(METHODS, ("#2a7f62", "#d08a2e", "#3d6fb6", "#b3365b", "#8a8a94", "#6b4fa0", "#4aa5a5", "#a0522d", "#c27ba0"), strict=True)
)


@dataclass(frozen=True)
class Stream:
    """One record: which images the method and the bare aggregator got right, in the order of the stream, and what metrics.json says."""

    ids: tuple[str, ...]
    final: np.ndarray
    bare: np.ndarray
    metrics: dict

    def by_id(self, row: str) -> np.ndarray:
        return getattr(self, row)[np.argsort(self.ids)]


Key = tuple[str, str, str, str]  # data, order, setting, method


def read(folder: Path) -> dict[Key, dict[int, Stream]]:
    """The streams of each key by order seed; of two with one seed the newest counts. Raises SystemExit when there is none."""
    found: dict[Key, dict[int, Stream]] = {}
    for path in sorted(folder.rglob("metrics.json"), key=lambda path: path.stat().st_mtime):
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        choices = json.loads((path.parent / "environment.json").read_text(encoding="utf-8"))["choices"]
        kind = config["corruption"].get("kind")
        data = choices["dataset"] + (f", {kind} {config['corruption']['severity']}" if kind else "")
        key = data, config["task"]["order"], choices["experiment"].removeprefix("tta/"), choices["method"]
        table = pq.read_table(path.parent / "predictions.parquet").to_pydict()
        label = np.array(table["label"])
        right = [np.array(table[f"{row}_prediction"]) == label for row in ("final", "aggregated")]
        stream = Stream(tuple(table["image_id"]), *right, json.loads(path.read_text(encoding="utf-8")))
        found.setdefault(key, {})[config["task"]["order_seed"]] = stream
    if not found:
        raise SystemExit(f"no finished run below {folder}; run sweep=streams first and pass its paths.output")
    return found


def gain(runs: dict[int, Stream]) -> Comparison:
    """The method against the bare aggregator on the same images and orders."""
    final, bare = (np.stack([runs[seed].by_id(row) for seed in sorted(runs)]) for row in ("final", "bare"))
    return compare_runs(final, bare, resamples=20_000)  # Holm over some sixty rows wants a low floor of p


def mean(runs: dict[int, Stream], *path: str) -> float:
    """The mean over orders of one number of metrics.json."""
    values = []
    for stream in runs.values():
        value = stream.metrics
        for name in path:
            value = value[name]
        values.append(value)
    return float(np.mean(values))


HEADER = [
    "data",
    "order",
    "setting",
    "method",
    "orders",
    "images",
    "bare",
    "top1",
    "lowest",
    "highest",
    "gain",
    "low",
    "high",
    "p",
    "p_holm",
]
HEADER += ["bare_ece", "ece", "bare_brier", "brier", "gain_first_tenth", "gain_last_tenth", "ms_an_image", "encoder_calls", "state_bytes"]


def line(key: Key, runs: dict[int, Stream], got: Comparison, corrected: float) -> list[object]:
    """One row of results.csv, in points of percent where it is an accuracy."""
    each = [POINTS * stream.final.mean() for stream in runs.values()]
    tenths = [POINTS * (mean(runs, "stream", t, "final") - mean(runs, "stream", t, "aggregated")) for t in ("first_tenth", "last_tenth")]
    bare = POINTS * np.mean([stream.bare.mean() for stream in runs.values()])
    measured = [mean(runs, "test", f"test/{name}") for name in ("aggregated/ece", "ece", "aggregated/brier", "brier")]
    cost = f"{mean(runs, 'stream', 'milliseconds_an_image', 'final'):.2f}"
    size = [int(mean(runs, "stream", name)) for name in ("encoder_calls_an_image", "state_bytes")]
    shown = [f"{value:.2f}" for value in (bare, np.mean(each), min(each), max(each))]
    tested = [*numbers(got), f"{got.p_value:.4f}", f"{corrected:.4f}"]
    return [
        *key,
        len(runs),
        len(ids_of(runs)),
        *shown,
        *tested,
        *(f"{m:.3f}" for m in measured),
        *(f"{t:.2f}" for t in tenths),
        cost,
        *size,
    ]


def ids_of(runs: dict[int, Stream]) -> Sequence[str]:
    return next(iter(runs.values())).ids


def place(key: Key) -> tuple:
    return key[0], key[1] != "shuffled", key[1], list(SETTINGS).index(key[2]), METHODS.index(key[3])


def curves(found: dict[Key, dict[int, Stream]], path: Path) -> None:
    """Running accuracy of each method less that of the bare aggregator, over the shuffled stream: the mean and the range of the orders."""
    data = sorted({key[0] for key in found if key[1] == "shuffled"})
    figure = Figure(figsize=(11, 2.6 * len(data)), layout="constrained")
    axes = figure.subplots(len(data), len(SETTINGS), squeeze=False)
    for (name, order, setting, method), runs in found.items():
        if order != "shuffled" or len(runs) < 2:
            continue
        axis = axes[data.index(name), list(SETTINGS).index(setting)]
        seen = np.arange(1, len(ids_of(runs)) + 1)
        lines = POINTS * np.stack([np.cumsum(s.final.astype(float) - s.bare) / seen for s in runs.values()])
        start = max(1, len(seen) // 20)  # the first images swing too widely to be drawn
        axis.plot(seen[start:], lines.mean(0)[start:], color=COLOURS[method], label=method, linewidth=1.3)
        axis.fill_between(seen[start:], lines.min(0)[start:], lines.max(0)[start:], color=COLOURS[method], alpha=0.12, linewidth=0)
    for row, name in enumerate(data):
        for column, title in enumerate(SETTINGS.values()):
            if not axes[row, column].lines:  # not run
                axes[row, column].set_axis_off()
                continue
            axes[row, column].axhline(0, color="black", linewidth=0.7)
            axes[row, column].set_title(f"{name}: {title}", fontsize=9)
            axes[row, column].set_ylabel("points over no method" if column == 0 else "", fontsize=8)
    axes[-1, 1].set_xlabel("images of the stream seen", fontsize=9)
    axes[0, -1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def cost(found: dict[Key, dict[int, Stream]], path: Path) -> None:
    """Top-1 against milliseconds an image of aggregator and method together, encoding left out."""
    data = sorted({key[0] for key in found if key[1] == "shuffled"})
    figure = Figure(figsize=(3.8 * len(data), 3.6), layout="constrained")
    axes = figure.subplots(1, len(data), squeeze=False)[0]
    marks = dict(zip(SETTINGS, ("o", "s", "^"), strict=True))
    for (name, order, setting, method), runs in sorted(found.items(), key=lambda item: place(item[0])):
        if order != "shuffled":
            continue
        spent = sum(mean(runs, "stream", "milliseconds_an_image", row) for row in ("aggregated", "final"))
        top = POINTS * np.mean([s.final.mean() for s in runs.values()])
        axes[data.index(name)].plot(spent, top, marks[setting], color=COLOURS[method], markersize=6, alpha=0.85)
    for axis, name in zip(axes, data, strict=True):
        for setting, mark in marks.items():
            bare = next((runs for key, runs in found.items() if key[:3] == (name, "shuffled", setting)), None)
            if bare:
                spent = mean(bare, "stream", "milliseconds_an_image", "aggregated")
                level = POINTS * np.mean([s.bare.mean() for s in bare.values()])
                axis.plot(spent, level, mark, color="black", markersize=8, fillstyle="none", label=f"{SETTINGS[setting]}, no method")
        axis.set_xscale("log")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("ms an image, encoding left out", fontsize=8)
    for method in METHODS:
        axes[-1].plot([], [], "o", color=COLOURS[method], label=method)
    axes[0].set_ylabel("top-1, %")
    axes[-1].legend(fontsize=6)
    figure.savefig(path, dpi=110)


def main() -> None:
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else OUTPUT
    found = read(Path(sys.argv[1]))
    keys = sorted(found, key=place)
    gains = {key: gain(found[key]) for key in keys}
    corrected = dict(zip(keys, holm([gains[key].p_value for key in keys]), strict=True))
    rows = [line(key, found[key], gains[key], corrected[key]) for key in keys]
    write_csv(output / "results.csv", HEADER, rows)
    curves(found, output / "curves.png")
    cost(found, output / "cost.png")
    shown = []
    for key, row in zip(keys, rows, strict=True):
        cells = dict(zip(HEADER, row, strict=True))
        spread = f" ({float(cells['lowest']):.1f} to {float(cells['highest']):.1f})" if cells["orders"] > 1 else ""
        mark = "" if corrected[key] < 0.05 else " (n.s.)"
        first = [key[0] + ("" if key[1] == "shuffled" else f", {key[1]}"), SETTINGS[key[2]], key[3]]
        calibration = [f"{cells['bare_ece']} → {cells['ece']}", f"{cells['bare_brier']} → {cells['brier']}"]
        tenths = f"{cells['gain_first_tenth']} / {cells['gain_last_tenth']}"
        accuracy = [f"{float(cells['bare']):.1f}", f"{float(cells['top1']):.1f}{spread}", points(gains[key]) + mark]
        shown.append([*first, *accuracy, *calibration, tenths, cells["ms_an_image"], cells["state_bytes"]])
    head = ["data", "setting", "method", "none", "top-1 (range over orders)", "gain [95 %]", "ECE", "Brier", "gain in first / last tenth"]
    print(markdown([*head, "ms an image", "state, bytes"], shown))


if __name__ == "__main__":
    main()
