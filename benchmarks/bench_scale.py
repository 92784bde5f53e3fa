"""Memory of the command at 1 and 10 million images: tables of images, task=score, and an engine that writes features without an encoder."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
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
    "task=score",
    "dataset=parquet",
    "crop=global",
    "aggregator=global",
    "prompt=template",
    "logger=none",
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


def score(top: Path) -> None:
    """The run, in a process of its own: prints its peak memory in bytes, and its seconds."""
    from multicrop.runs.score_parts import evaluate
    from multicrop.runs.settings import settings_of

    started = time.perf_counter()
    register_resolvers()
    places = [f"dataset.test={top}/tables", f"dataset.class_names={top}/names.json", f"paths.cache={top}/banks", f"paths.output={top}/runs"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = settings_of(compose("config", overrides=[*KNOBS, *places]))
    torch.set_num_threads(1)
    settings.config["engine"] = {"_target_": "bench_scale.StubEngine"}
    evaluate(settings)
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - started]))


def measured(images: int) -> tuple[float, float]:
    """Peak memory in GiB and seconds of a run with so many images."""
    with tempfile.TemporaryDirectory() as top:
        subprocess.run([sys.executable, __file__, "tables", top, str(images)], check=True)
        Path(top, "names.json").write_text(json.dumps([f"class {i}" for i in range(CLASSES)]))
        done = subprocess.run([sys.executable, __file__, "score", top], check=True, stdout=subprocess.PIPE, env=os.environ)
        peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak / GIB, seconds


def memory(millions: int) -> list[Row]:
    """Peak memory of the command in GiB, and against that at 1 million images."""
    found = {images: measured(images) for images in dict.fromkeys((MILLION, millions * MILLION))}
    peak, seconds = found[millions * MILLION]
    rows = [Row(f"GiB at {millions} million images", peak, peak, peak, mark=1.0, at_most=True, note=f"{seconds:.0f} s, 1 thread")]
    if millions > 1:
        ratio = peak / found[MILLION][0]
        rows.append(Row(f"{millions} million images / 1 million", ratio, ratio, ratio, mark=1.2, at_most=True, note="peak memory"))
    return rows


TITLE = "peak memory of task=score on Parquet tables, features without an encoder"
PARTS = {"million": lambda: memory(1), "ten_million": lambda: memory(10)}

if __name__ == "__main__":
    if sys.argv[1] == "tables":
        tables(Path(sys.argv[2], "tables"), int(sys.argv[3]))
    else:
        score(Path(sys.argv[2]))
