"""Ray against local processes after their start-up, object storage against a disk, and scores on Ray against those of this process."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from timing import Row, Timing, ratio

from multicrop.files import Objects, facts_in, read_facts
from multicrop.record import PartFolder

ROOT = Path(__file__).parent.parent
IMAGES, ROUNDS, PROCESSES = 64, 3, 2


def knobs(shards: int) -> list[str]:
    """The command line of a run on so many shards."""
    data = ["dataset.n_classes=16", "dataset.train_images=1", "dataset.validation_images=1", f"dataset.test_images={shards * IMAGES // 16}"]
    return [*data, "logger=none", "trainer.progress=false", "trainer.threads=1", f"trainer.shard_images={IMAGES}", "crop=random_k16"]


def ray_of(processes: int) -> list[str]:
    """The command line of a cluster on this machine with so many actors."""
    return ["engine=ray", "engine.address=local", f"engine.actors=[{processes},{processes}]"]


def run(*words: str, processes: int = 1) -> None:
    """Run commands side by side, each with one thread."""
    command, env = [sys.executable, "run.py", *words], os.environ | {"OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) for _ in range(processes)]
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise RuntimeError(f"{' '.join(command)} failed")


def in_rounds(ways: dict[str, Callable[[], float]]) -> dict[str, Timing]:
    """The seconds that each alternative measures, one after another in each round, in the other order in each second round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name in [*ways] if number % 2 == 0 else [*ways][::-1]:
            seconds[name].append(ways[name]())
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def seconds_per_shard(*words: str, processes: int = 1) -> float:
    """Seconds per shard while all processes encode, from the times of the files: the first and the last quarter are left out."""
    shards = 16
    with tempfile.TemporaryDirectory() as top:
        run("task=encode", *knobs(shards), *words, f"paths.cache={top}/banks", f"paths.output={top}/runs", processes=processes)
        times = sorted(path.stat().st_mtime for path in Path(top, "banks").rglob("shard-*.safetensors"))
    if len(times) != shards:
        raise RuntimeError(f"expected {shards} shards, found {len(times)}")
    first, last = shards // 4, shards - shards // 4
    return (times[last] - times[first]) / (last - first)


def against_local_processes() -> list[Row]:
    """Two actors against two processes, and two processes against themselves."""
    alone = partial(seconds_per_shard, processes=PROCESSES)
    found = in_rounds({"local": alone, "ray": partial(seconds_per_shard, *ray_of(PROCESSES)), "again": alone})
    note = f"16 shards of {IMAGES} images, 17 views each: {1 / found['ray'].median:.2f} shards per second on Ray"
    name = f"{PROCESSES} local processes / {PROCESSES} Ray actors, after start-up"
    return [
        ratio(name, found["local"], found["ray"], mark=0.9, note=note),
        ratio(f"{PROCESSES} local processes / the same again", found["local"], found["again"], note="the floor of this machine"),
    ]


def seconds_on_disk() -> float:
    """Seconds of a fill on disk, by one process with one thread."""
    with tempfile.TemporaryDirectory() as top:
        run("task=encode", *knobs(8), f"paths.cache={top}/banks", f"paths.output={top}/runs")
        (manifest,) = Path(top, "banks").rglob("manifest.json")
        return (read_facts(manifest) or {})["seconds"]


def seconds_in_bucket(buckets: dict) -> float:
    """The same into a new bucket."""
    buckets[bucket := f"bucket-{len(buckets)}"] = {}
    with tempfile.TemporaryDirectory() as top:
        run("task=encode", *knobs(8), f"paths.cache=s3://{bucket}", f"paths.local={top}/local", f"paths.output={top}/runs")
    objects = Objects(f"s3://{bucket}")
    (manifest,) = (found.name for found in objects.list() if found.name.endswith("manifest.json"))
    return (facts_in(objects.read(manifest) or b"") or {})["seconds"]


def against_disk() -> list[Row]:
    """A fill in S3 against one on disk; the server of the tests is in this process."""
    sys.path.insert(0, str(ROOT / "tests"))
    server = importlib.import_module("s3_server")
    with server.serving() as (address, state):
        os.environ |= server.amazon(address, "secret")
        found = in_rounds({"disk": seconds_on_disk, "objects": partial(seconds_in_bucket, state.buckets), "again": seconds_on_disk})
    note = f"8 shards of {IMAGES} images, 17 views each: {found['disk'].median:.0f} s on disk"
    return [
        ratio("fill in S3 on the loopback / on disk", found["objects"], found["disk"], mark=1.1, at_most=True, note=note),
        ratio("fill on disk / the same again", found["disk"], found["again"], note="the floor of this machine"),
    ]


def scores() -> list[Row]:
    """Seconds of scoring a bank in this process and on two actors, and how many files of predictions differ."""
    seconds, files, sums = {}, {}, {}
    with tempfile.TemporaryDirectory() as top:
        words = ["task=score", *knobs(16), "aggregator=dnd", f"paths.cache={top}/banks"]
        run("task=encode", *knobs(16), f"paths.cache={top}/banks", f"paths.output={top}/runs", processes=PROCESSES)
        for name, own in (("local", []), ("ray", ray_of(PROCESSES))):
            run(*words, *own, f"paths.output={top}/{name}")
            (metrics,) = Path(top, name).rglob("metrics.json")
            seconds[name] = json.loads(metrics.read_text())["scoring_seconds"]
            parts = PartFolder.read(metrics.parent / "predictions.parquet")
            files[name], sums[name] = {path.name: path.read_bytes() for path in parts.path.glob("part-*")}, parts.total()
    differing = sum(files["local"][name] != files["ray"].get(name) for name in files["local"]) + (sums["local"] != sums["ray"])
    note = f"{len(files['local'])} files and their sums"
    spent = Timing((seconds["local"],)), Timing((seconds["ray"],))
    return [
        Row("files and sums of predictions that differ, Ray against local", differing, differing, differing, 0.0, at_most=True, note=note),
        ratio("scoring: local / Ray, with its start-up", *spent, note=f"{seconds['local']:.1f} s and {seconds['ray']:.1f} s"),
    ]


TITLE = "the embedded model, scenes, one thread per process"
PARTS = {"ray": against_local_processes, "objects": against_disk, "scores": scores}
LONG = tuple(PARTS)  # minutes: processes that fill banks
