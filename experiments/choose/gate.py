"""The gate against harm: its threshold chosen on validation streams, and tested on streams that took no part.

    python experiments/choose/gate.py measure DATASET VENDOR KIND SEVERITY FOLDER [OVERRIDE ...]   # one stream: logits and entropies
    python experiments/choose/gate.py table FOLDER [FILE]                                         # writes FILE (gate.csv) and prints it

VENDOR is a held-out vendor, or `validation` for validation (scenes) and training images (emoji); KIND is a corruption or `none`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from scipy.special import expit

from multicrop.aggregators import as_aggregator, global_view
from multicrop.aggregators.gate import entropy_gap
from multicrop.compare.statistics import Comparison, compare
from multicrop.config import register_resolvers
from multicrop.runs import choose
from multicrop.runs.session import Session
from multicrop.runs.settings import settings_of

ROOT, OUTPUT = Path(__file__).parents[2], Path(__file__).parent / "gate.csv"
sys.path.insert(0, str(ROOT))  # for experiments/study.py
from experiments.study import POINTS, markdown, numbers, with_interval, write_csv

VALIDATION = "validation"
CHOSEN_ON = ("none", "shot_noise", "contrast")  # corruptions of the validation streams, severity 3
THRESHOLDS, WIDTHS = np.round(np.arange(-0.5, 1.51, 0.05), 2), (0.02, 0.1, 0.3)  # nats
WEIGHT = 0.75  # of the local logits where the gate is open, that of aggregator=gated
HEADER = ("stream", "images", "gap", "global", "rule", "top1", "difference", "low", "high", "clusters")


@dataclass(frozen=True)
class Stream:
    """Logits of the global view and of D&D over all views, entropy gaps, labels and clusters of one stream."""

    name: str
    whole: np.ndarray
    local: np.ndarray
    gap: np.ndarray
    label: np.ndarray
    cluster: list[str]

    def correct(self, weight: np.ndarray | float) -> np.ndarray:
        """Which images are right with this weight of the local logits, one for all or one per image."""
        weight = np.broadcast_to(np.asarray(weight, float), self.gap.shape)[:, None]
        return ((1 - weight) * self.whole + weight * self.local).argmax(1) == self.label

    def per_image(self, threshold: float, width: float) -> np.ndarray:
        """Which images are right with aggregator=gated."""
        return self.correct(WEIGHT * expit((threshold - self.gap) / width))

    def per_stream(self, threshold: float) -> np.ndarray:
        """Which images are right where fusion is switched off for the whole stream above the threshold."""
        return self.correct(WEIGHT * float(self.gap.mean() <= threshold))


def measure(dataset: str, vendor: str, kind: str, severity: str, folder: Path, *more: str) -> None:
    """Encode one stream with 16 crops of the data set's sides, and save what the gate reads; more: overrides, such as another model."""
    own = {"scenes": f"dataset.vendor={vendor}", "emoji": f"dataset.vendors=[{vendor}]"}[dataset]
    overrides = ["task=choose", "logger=none", "aggregator=dnd", "aggregator.view_set=all", f"dataset={dataset}"]
    overrides += [own] if vendor != VALIDATION else []
    overrides += ["corruption=common", f"corruption.kind={kind}", f"corruption.severity={severity}"] if kind != "none" else []
    overrides += more
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        session = Session(settings_of(compose("config", overrides)))
    knobs = session.settings.task_knobs
    images = choose.images_to_choose_on(session, **knobs)[0] if vendor == VALIDATION else session.dataset.test
    bank = session.bank(images)
    text, scale, aggregate = session.text, session.encoder.logit_scale, as_aggregator(session.aggregator)
    with torch.inference_mode():
        parts = [(global_view(v, text, scale), aggregate(v, text, scale), entropy_gap(v, text, scale)) for v in bank.tensors()[0].split(64)]
    whole, local, gap = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    cluster = [images.clusters[i] for i in bank.positions] if images.clusters else [""] * len(bank)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{dataset}, {vendor}, {kind} {severity}" if kind != "none" else f"{dataset}, {vendor}, none"
    values = {"whole": whole, "local": local, "gap": gap, "label": np.asarray(bank.labels), "cluster": np.asarray(cluster), "name": name}
    np.savez(folder / f"{dataset}-{vendor}-{kind}-{severity}.npz", **values)
    print(f"{name}: {len(bank)} images, mean gap {gap.mean():.2f} nats")


def read(folder: Path) -> list[Stream]:
    """All measured streams of a folder."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as a:
            found.append(Stream(str(a["name"]), a["whole"], a["local"], a["gap"], a["label"], [str(c) for c in a["cluster"]]))
    return found


def chosen(streams: list[Stream]) -> tuple[tuple[float, float], float]:
    """Threshold and width per image, and threshold per stream, with the highest mean accuracy over the validation streams.

    Of equal ones the middle is taken, the lower of two.
    """
    pairs = [(t, w) for w in WIDTHS for t in THRESHOLDS]
    image = _middle(pairs, [np.mean([s.per_image(*pair).mean() for s in streams]) for pair in pairs])
    stream = _middle(list(THRESHOLDS), [np.mean([s.per_stream(t).mean() for s in streams]) for t in THRESHOLDS])
    return image, stream


def _middle(options: list, scores: list[float]) -> object:
    best = [option for option, score in zip(options, scores, strict=True) if score >= max(scores) - 1e-9]
    return best[(len(best) - 1) // 2]


def lines_of(stream: Stream, image: tuple[float, float], threshold: float) -> list[list[object]]:
    """D&D alone, fused, and gated per image and per stream, against the global view."""
    whole, local = stream.correct(0.0), stream.correct(1.0)
    rules = {"dnd, all views": local, "dnd fused 0.75": stream.correct(WEIGHT)}
    rules |= {"gated per image": stream.per_image(*image), "gated per stream": stream.per_stream(threshold)}
    rows = []
    for rule, correct in rules.items():
        gain: Comparison = compare(correct, whole, clusters=stream.cluster)
        facts = [len(whole), f"{stream.gap.mean():.2f}", f"{POINTS * whole.mean():.2f}"]
        rows.append([stream.name, *facts, rule, f"{POINTS * correct.mean():.2f}", *numbers(gain), gain.clusters or ""])
    return rows


def condensed(rows: list[list[object]]) -> str:
    """One line per stream: gap, global view, and the gain of each rule with its interval."""
    rules = list(dict.fromkeys(str(row[4]) for row in rows))
    lines: dict[object, list[object]] = {}
    for stream, _, gap, whole, _, _, *gain, _ in rows:
        lines.setdefault(stream, [stream, gap, f"{float(whole):.1f}"]).append(with_interval(gain))
    return markdown(["stream", "gap, nats", "global view", *rules], lines.values())


def table(folder: Path, output: Path) -> None:
    """Choose on the validation streams, write the lines of all streams and print them."""
    streams = read(folder)
    image, threshold = chosen([s for s in streams if VALIDATION in s.name])
    print(f"per image: threshold {image[0]:.2f}, width {image[1]:.2f} nats; per stream: threshold {threshold:.2f} nats")
    rows = [line for stream in sorted(streams, key=lambda s: VALIDATION not in s.name) for line in lines_of(stream, image, threshold)]
    write_csv(output, HEADER, rows)
    print(condensed(rows))


def main() -> None:
    match sys.argv[1:]:
        case ["measure", dataset, vendor, kind, severity, folder, *more]:
            measure(dataset, vendor, kind, severity, Path(folder), *more)
        case ["table", folder]:
            table(Path(folder), OUTPUT)
        case ["table", folder, output]:
            table(Path(folder), Path(output))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
