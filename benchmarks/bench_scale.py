"""Memory at 1 and 10 million images: listing, task=encode, task=score, compare --parts; an engine writes features without an encoder."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import torch
from hydra import compose, initialize_config_dir
from pyarrow import parquet as pq
from timing import Row

from multicrop.config import CONF, register_resolvers
from multicrop.features.base import EncodeCost
from multicrop.features.engine import LocalEngine, seal

MILLION, CLASSES, DIM = 1_000_000, 10, 128  # DIM: features of the embedded model
ROWS, SHARD = 2**16, 2**16  # rows per row group, images per shard
GIB = 2**30
KNOBS = [
    "dataset=parquet",
    "crop=global",
    "aggregator=global",
    "prompt=template",
    f"trainer.shard_images={SHARD}",
]
KNOBS += ["logger=none", "trainer.batch_size=4096", "trainer.threads=1", "trainer.progress=false", "examples=0", "pictures=0"]


class StubEngine(LocalEngine):
    """Writes the same random features into each shard, turned by its number; images are not opened."""

    def __call__(self, images, recipe, identity, folder, settings) -> None:
        generator = torch.Generator().manual_seed(0)
        views = torch.nn.functional.normalize(torch.randn(SHARD, 1, DIM, generator=generator), dim=-1).half()
        boxes, readable = torch.zeros(SHARD, 1, 4), torch.ones(SHARD, dtype=torch.uint8)
        for shard in folder.missing():
            count = len(folder.rows(shard))
            folder.write(shard, {"views": views.roll(shard, 0)[:count], "boxes": boxes[:count], "readable": readable[:count]})
        seal(images, recipe, identity, folder, EncodeCost.of(1, 1.0))


def tables(folder: Path, images: int) -> None:
    """Tables of images that are not there: a million rows per file."""
    folder.mkdir()
    for first in range(0, images, MILLION):
        numbers = range(first, min(first + MILLION, images))
        columns = {"id": [f"image-{i:09d}" for i in numbers], "label": [i % CLASSES for i in numbers]}
        columns |= {"location": ["none.jpg"] * len(numbers), "hash": [f"{i:032x}" for i in numbers]}
        pq.write_table(pa.table(columns), folder / f"{first:09d}.parquet", row_group_size=ROWS)


def settings_in(top: Path, task: str):
    """The settings of a task whose bank is filled without an encoder."""
    from multicrop.runs.settings import settings_of

    register_resolvers()
    torch.set_num_threads(1)
    places = [f"dataset.test={top}/tables", f"dataset.class_names={top}/names.json", f"paths.cache={top}/banks", f"paths.output={top}/runs"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = settings_of(compose("config", overrides=[f"task={task}", *KNOBS, *places]))
    settings.config["engine"] = {"_target_": "bench_scale.StubEngine"}
    return settings


def list_images(top: Path) -> None:
    """Read the tables: labels, classes, identity of the data."""
    from multicrop.data.overview import overview
    from multicrop.runs.session import Session

    session = Session(settings_in(top, "score"))
    print(*overview(session.dataset), session.dataset.test.fingerprint, sep="\n", file=sys.stderr)


def encode(top: Path) -> None:
    """Fill the bank and verify it."""
    from multicrop.runs import experiment

    experiment.encode(settings_in(top, "encode"))


def score(top: Path) -> None:
    """Score the bank, which is there."""
    from multicrop.runs.score_parts import evaluate

    evaluate(settings_in(top, "score"))


def compare(top: Path) -> None:
    """Compare two rows of the run."""
    from multicrop.cli import main

    with suppress(SystemExit):
        main(["compare", f"{top}/runs", "--parts", "--baseline", "crops_mean"])


STEPS = {"list": list_images, "encode": encode, "score": score, "compare --parts": compare}


def step(name: str, top: Path) -> None:
    """One step, in a process of its own: prints its peak memory in bytes, and its seconds."""
    started = time.perf_counter()
    STEPS[name](top)
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - started]))


def measured(images: int) -> dict[str, tuple[float, float]]:
    """Peak memory in GiB and seconds of each step with so many images."""
    found = {}
    with tempfile.TemporaryDirectory() as top:
        subprocess.run([sys.executable, __file__, "tables", top, str(images)], check=True)
        Path(top, "names.json").write_text(json.dumps([f"class {i}" for i in range(CLASSES)]))
        for name in STEPS:
            done = subprocess.run([sys.executable, __file__, name, top], check=True, stdout=subprocess.PIPE, env=os.environ)
            peak, seconds = json.loads(done.stdout.splitlines()[-1])
            found[name] = peak / GIB, seconds
    return found


def memory(millions: int) -> list[Row]:
    """Peak memory of each step in GiB, and against that at 1 million images."""
    found = {images: measured(images) for images in dict.fromkeys((MILLION, millions * MILLION))}
    rows = []
    for name, (peak, seconds) in found[millions * MILLION].items():
        rows.append(
            Row(f"{name}: GiB", peak, peak, peak, mark=1.0, at_most=True, note=f"{millions} million images, {seconds:.0f} s, 1 thread")
        )
        if millions > 1:
            ratio = peak / found[MILLION][name][0]
            rows.append(Row(f"{name}: against 1 million", ratio, ratio, ratio, mark=1.2, at_most=True, note="peak memory"))
    return rows


TITLE = "peak memory of each step on Parquet tables, features without an encoder"
PARTS = {"million": lambda: memory(1), "ten_million": lambda: memory(10)}
LONG = ("million", "ten_million")  # a minute and a half, and minutes

if __name__ == "__main__":
    if sys.argv[1] == "tables":
        tables(Path(sys.argv[2], "tables"), int(sys.argv[3]))
    else:
        step(sys.argv[1], Path(sys.argv[2]))
