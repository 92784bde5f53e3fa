"""Options that should change no answer, against the plain way: python experiments/cost/exact.py [--small] [--folder FOLDER] [OVERRIDE ...].

Each stream is encoded without and with an option, 16 random crops per image and D&D fused, and the two are compared image by image:
`model.precision=openvino_fp32`, and `trainer.cut=scaled`, for which the images are enlarged and stored as JPEG files that both ways read.
Writes exact.csv of what was measured so far beside this file; with --small (a part of the data, two seeds, four crops) or with
overrides, which are those of run.py (such as model=local), into FOLDER. What was measured before is not measured again.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository, for experiments/
from experiments.cost.streams import ROOT, SMALL, SMALL_DATA, Look, Plan, identity_of, session_of
from experiments.study import POINTS, RANGES, markdown, numbers, with_interval, write_csv

from multicrop.compare.statistics import compare_runs
from multicrop.config import register_resolvers
from multicrop.data.base import LabelledImages
from multicrop.data.images import open_image, reduction_of
from multicrop.features import feature_bank
from multicrop.features.view_dataset import ViewCutter
from multicrop.files import atomic, content_hash
from multicrop.runs.session import Session
from multicrop.runs.sweep_cache import SweepCache

RECORD = Path(__file__).with_name("exact.csv")
SCALED = "trainer.cut=scaled"
OPTIONS = ("model.precision=openvino_fp32", SCALED)
SIDE = 1920  # pixels: the shorter side of an enlarged image
QUALITY = 95  # of its JPEG file
HEADER = (
    *("option", "data", "vendor", "crops", "seeds", "images", "decoded", "stay", "cosine", "processor_time", "plain", "top1"),
    *("difference", "low", "high", "clusters"),
)


@dataclass(frozen=True)
class Pair:
    """One stream with one crop seed, without and with an option.

    Attributes:
        answers: The predicted class per image, without the option and with it: (2, images).
        labels: The class of each image.
        clusters: The cluster of each image.
        cosine: The lowest cosine between the features of one view.
        seconds: Processor time of opening, cutting and encoding, without the option and with it.
        decoded: The factors by which the files were reduced while they were decoded, without repetition.
    """

    answers: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    cosine: np.ndarray
    seconds: np.ndarray
    decoded: np.ndarray


def enlarged(images: LabelledImages) -> LabelledImages:
    """The images as JPEG files in memory, their shorter side SIDE pixels long (bicubic)."""

    def jpeg(index: int) -> bytes:
        image, file = images.open(index), io.BytesIO()
        size = [round(length * SIDE / min(image.size)) for length in image.size]
        image.resize((size[0], size[1]), Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    files = [jpeg(index) for index in range(len(images))]
    content = content_hash(images.fingerprint, "bicubic", SIDE, QUALITY)
    return replace(images, open=lambda index: open_image(files[index]), content=content, parent=None)


@torch.inference_mode()
def encoded(session: Session, images: LabelledImages) -> tuple[torch.Tensor, float]:
    """The features of the images' views (images, views, dim), and the processor time of their bank in seconds."""
    with TemporaryDirectory() as cache:
        how = {"seed": session.settings["crop_seed"], "cache": Path(cache), "cut": session.settings.compute.cut, "progress": False}
        start = process_time()
        views, _ = feature_bank(images, session.sampler, session.encoder, **how).tensors()
        seconds = process_time() - start
    return views, seconds


@torch.inference_mode()
def measure(plain: Session, other: Session, images: LabelledImages) -> Pair:
    """Encode the images both ways, after a first image that pays for what is done once per process."""
    sessions = (plain, other)
    _ = [encoded(session, images.subset([0])) for session in sessions]
    views, seconds = zip(*(encoded(session, images) for session in sessions), strict=True)
    answers = [torch.cat([session.scorer(some).argmax(1) for some in own.split(64)]) for session, own in zip(sessions, views, strict=True)]
    cutter = ViewCutter(other.sampler, other.encoder.spec, 0, other.settings.compute.cut)
    decoded = sorted({reduction_of(cutter.open(images, index)) for index in range(len(images))})
    facts = (images.labels, images.clusters or [""] * len(images), torch.cosine_similarity(*views, dim=-1).min(), seconds, decoded)
    return Pair(torch.stack(answers).numpy(), *map(np.asarray, facts))


def file_of(folder: Path, option: str, data: str, vendor: str, seed: int) -> Path:
    """Where a measurement is kept."""
    return folder / f"{option.split('=')[1]}-{data}-{vendor}-{seed}.npz"


def is_measured(path: Path, identity: str) -> bool:
    """Whether a file holds this measurement, and not that of other data, settings or code."""
    if not path.is_file():
        return False
    with np.load(path) as stored:
        return str(stored["identity"]) == identity


def measure_all(plan: Plan, folder: Path, small: bool) -> Iterator[None]:
    """Measure what the folder does not hold yet, the crop seeds of one stream after the other; returns control after each."""
    cache, files = SweepCache(), SweepCache(1)
    for (data, vendor), seed in product(plan.streams, plan.seeds):
        own = ("split=test", *plan.overrides, *(SMALL_DATA[data] if small else ()))
        plain = session_of(data, vendor, Look("random"), seed, plan.most, own, cache)
        images = plain.scored_images
        for option in OPTIONS:
            other = session_of(data, vendor, Look("random"), seed, plan.most, (*own, option), cache)
            sizes = [SIDE, QUALITY] if option == SCALED else []
            identity = content_hash(*(identity_of(session, [plan.most]) for session in (plain, other)), *sizes)
            path = file_of(folder, option, data, vendor, seed)
            if is_measured(path, identity):
                continue
            read_by_both = files.get("enlarged", images.fingerprint, partial(enlarged, images)) if sizes else images
            found = measure(plain, other, read_by_both)
            with atomic(path) as unfinished, unfinished.open("wb") as file:
                np.savez(file, **vars(found), identity=identity)
        yield


def read(path: Path) -> Pair:
    """A measurement."""
    with np.load(path) as stored:
        return Pair(**{name: stored[name] for name in Pair.__dataclass_fields__})


def line_of(option: str, data: str, vendor: str, crops: int, pairs: list[Pair]) -> list[object]:
    """One line of the record, from one measurement per crop seed: shares and accuracies in percent."""
    answers, labels, clusters = np.stack([pair.answers for pair in pairs], 1), pairs[0].labels, pairs[0].clusters
    plain, other = answers == labels
    got = compare_runs(other, plain, clusters=list(clusters) if clusters[0] else None)
    seconds = np.sum([pair.seconds for pair in pairs], 0)
    decoded = " ".join(f"1/{factor}" for factor in pairs[0].decoded)
    lowest = min(float(pair.cosine) for pair in pairs)
    shares = [f"{POINTS * (answers[0] == answers[1]).mean():.2f}", f"{lowest:.4f}", f"{seconds[1] / seconds[0]:.2f}"]
    accuracies = [f"{POINTS * right.mean():.2f}" for right in (plain, other)]
    return [option, data, vendor, crops, *plain.shape, decoded, *shares, *accuracies, *numbers(got), got.clusters or ""]


def lines_of(plan: Plan, folder: Path) -> list[list[object]]:
    """The lines of the record, with the crop seeds that were measured."""
    lines = []
    for option, (data, vendor) in product(OPTIONS, plan.streams):
        paths = [path for seed in plan.seeds if (path := file_of(folder, option, data, vendor, seed)).is_file()]
        if paths:
            lines.append(line_of(option, data, vendor, plan.most, [read(path) for path in paths]))
    return lines


def table(lines: list[list[object]]) -> str:
    """The record for the study's page."""
    shown = []
    for line in lines:
        row = dict(zip(HEADER, line, strict=True))
        change = with_interval([row["difference"], row["low"], row["high"]])
        cells = [row["seeds"], row["images"], row["decoded"], f"{row['stay']} %", change, row["cosine"], row["processor_time"]]
        shown.append([f"`{row['option']}`", f"{row['data']}, {RANGES[str(row['vendor'])]}", *cells])
    header = ["option", "stream", "seeds", "images", "decoded at", "answers that stay", "top-1", "lowest cosine", "processor time"]
    return markdown(header, shown)


def main() -> None:
    """Measure what is missing, and write the record after each stream and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a part of the data, two seeds, four crops")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*", help="of run.py")
    knobs = parser.parse_args()
    folder = knobs.folder or ROOT / "outputs" / ("exact_small" if knobs.small else "exact")
    plan = replace(SMALL if knobs.small else Plan(), overrides=tuple(knobs.overrides))
    torch.set_num_threads(1)
    register_resolvers()
    folder.mkdir(parents=True, exist_ok=True)
    for _ in measure_all(plan, folder, knobs.small):
        lines = lines_of(plan, folder)
        write_csv(folder / RECORD.name if knobs.small or knobs.overrides else RECORD, HEADER, lines)
        print(table(lines), flush=True)


if __name__ == "__main__":
    main()
