"""Filling a bank: two Ray actors against two local processes after their start-up, and object storage against a disk."""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Row, Timing, ratio

from multicrop.files import Objects, facts_in, read_facts

ROOT = Path(__file__).parent.parent
SHARDS, IMAGES, ROUNDS, PROCESSES = 16, 64, 3, 2
KNOBS = ["task=encode", "logger=none", "trainer.progress=false", "dataset.n_classes=16", "dataset.train_images=1", "crop=random_k16"]
KNOBS += ["dataset.validation_images=1", f"dataset.test_images={SHARDS * IMAGES // 16}", f"trainer.shard_images={IMAGES}"]
RAY = ["engine=ray", "engine.address=local", f"engine.actors=[{PROCESSES},{PROCESSES}]"]


def rate(folder: Path, *knobs: str, processes: int = 1) -> float:
    """Seconds per shard while all processes encode, from the times of the shards: the first and last quarter are left out."""
    command = [sys.executable, "run.py", *KNOBS, *knobs, "trainer.threads=1", f"paths.cache={folder}/banks", f"paths.output={folder}/runs"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) for _ in range(processes)]
    if any(process.wait() for process in started):
        raise RuntimeError(f"{' '.join(command)} failed")
    times = sorted(path.stat().st_mtime for path in folder.rglob("shard-*.safetensors"))
    if len(times) != SHARDS:
        raise RuntimeError(f"expected {SHARDS} shards, found {len(times)}")
    first, last = SHARDS // 4, SHARDS - SHARDS // 4
    return (times[last] - times[first]) / (last - first)


def against_local_processes() -> list[Row]:
    """Seconds per shard of two local processes / of two actors."""
    local, ray = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            local.append(rate(Path(one), processes=PROCESSES))
            ray.append(rate(Path(other), *RAY))
    note = f"{SHARDS} shards of {IMAGES} images, 17 views each: {1 / ray[-1]:.1f} shards per second on Ray"
    return [
        ratio(
            f"{PROCESSES} local processes / {PROCESSES} Ray actors, after start-up", Timing((*local,)), Timing((*ray,)), mark=0.9, note=note
        )
    ]


def fill(*knobs: str) -> None:
    """Fill a bank in a process of its own."""
    command = [sys.executable, "run.py", *KNOBS, *knobs, "trainer.threads=1"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True)


def against_disk() -> list[Row]:
    """Seconds of a fill on disk / in object storage, by one process with one thread; the S3 server of the tests is in this process."""
    sys.path.insert(0, str(ROOT / "tests"))
    serving = importlib.import_module("s3_server").serving
    disk, objects = [], []
    with serving() as (address, state):
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for number in range(ROUNDS):
            state.buckets[f"bucket-{number}"], url = {}, f"s3://bucket-{number}"
            with tempfile.TemporaryDirectory() as top:
                fill(f"paths.cache={top}/banks", f"paths.output={top}/runs")
                fill(f"paths.cache={url}", f"paths.local={top}/local", f"paths.output={top}/runs")
                (on_disk,) = Path(top, "banks").rglob("manifest.json")
                (in_bucket,) = (found.name for found in Objects(url).list() if found.name.endswith("manifest.json"))
                disk.append(read_facts(on_disk)["seconds"])
                objects.append(facts_in(Objects(url).read(in_bucket))["seconds"])
    note = f"{SHARDS} shards of {IMAGES} images, 17 views each: {disk[-1]:.0f} s on disk"
    return [ratio("fill on disk / in S3 on the loopback", Timing((*disk,)), Timing((*objects,)), mark=0.9, note=note)]


TITLE = "the embedded model, scenes, one thread per process"
PARTS = {"ray": against_local_processes, "objects": against_disk}
LONG = tuple(PARTS)  # minutes: processes that fill banks
