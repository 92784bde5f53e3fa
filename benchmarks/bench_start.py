"""The start of a command against `import torch`, the least that a run takes: help, a run on a bank at hand, sweeps of finished jobs."""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from timing import Row, in_turn, ratio

ROOT = Path(__file__).parent.parent
SMALL = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1", "crop=random_k1"]
QUIET = ["logger=none", "pictures=0", "trainer.progress=false"]
JOBS = 100


def python(*words: str) -> None:
    """Run Python in the repository; raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)


def against_torch(name: str, words: list[str], rounds: int) -> list[Row]:
    """The time of `run.py` with these words, after a first call, in units of `import torch`."""
    times = in_turn({"run": partial(python, "run.py", *words), "torch": partial(python, "-c", "import torch")}, rounds=rounds)
    note = f"{times['run'].median:.1f} s; import torch {times['torch'].median:.1f} s"
    return [ratio(f"{name} / import torch", times["run"], times["torch"], note=note)]


def in_new_folders(name: str, words: list[str], rounds: int) -> list[Row]:
    """The same with an empty cache and no records before the first call."""
    with tempfile.TemporaryDirectory() as top:
        return against_torch(name, [*words, *SMALL, *QUIET, f"paths.cache={top}/banks", f"paths.output={top}/runs"], rounds)


KNOB = ["-m", "aggregator=max", f"task.fusion_weight=range(0,1,{1 / JOBS})"]
GROUPS = ["-m", "aggregator=dnd,max,mean_similarity,topk,vote", "prompt=descriptions,mixed", "task.fusion_weight=range(0,1,0.1)"]
TITLE = "processes from start to end"
PARTS = {
    "help": partial(against_torch, "run.py --help", ["--help"], 5),
    "run": partial(in_new_folders, "a run on a bank at hand", [], 3),
    "knob": partial(in_new_folders, f"{JOBS} finished jobs of one knob", KNOB, 3),
    "groups": partial(in_new_folders, f"{JOBS} finished jobs over ten choices of groups", GROUPS, 3),
}
LONG = ("knob", "groups")
