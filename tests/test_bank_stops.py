"""SIGTERM and SIGINT while a bank fills, a stream is scored or an adapter is fitted: the run ends between two batches, and says so."""

import os
import signal
import time

import forked
import pytest
from test_bank import shard_bytes

QUICK = ["examples=0", "pictures=0", "logger=none", "trainer.progress=false", "dataset.n_classes=4", "dataset.train_images=4"]
BANK = ["task=encode", "crop=random_k4", *QUICK, "dataset.test_images=300", "task.splits=[test]", "trainer.shard_images=16"]
STREAM = ["task=tta", "method=tda", "crop=random_k1", *QUICK, "dataset.test_images=40", "trainer.batch_size=4", "task.save_every=8"]
FIT = ["task=few_shot", "adapter=tip_adapter_f", "crop=random_k1", *QUICK, "dataset.test_images=4", "task.shots=1", "task.selection=fixed"]
SLOW = {
    "bank": "from multicrop.model import MultiCropCLIP as C; name = 'predict_step'",
    "stream": "from multicrop.runs.tta import AdaptationTask as C; name = 'test_step'",
    "fit": "from multicrop.adapters.descent import DescentModule as C; name = 'training_step'",
}
# Marks each step of a loop, which takes at least a while, with its begin and its end in a file, and runs the command.
CODE = """
import runpy, sys, time
sys.path.insert(0, "src")
{patch}
step = getattr(C, name)
def slow(self, *arguments):
    with open({marks!r}, "a") as marks:
        marks.write("begin\\n"); marks.flush()
        time.sleep(0.3)
        done = step(self, *arguments)
        marks.write("end\\n")
    return done
setattr(C, name, slow)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def signalled(tmp_path, kind, arguments, number, steps):
    """A command that gets a signal within the step after so many, and the marks of its steps."""
    marks = tmp_path / f"marks-{kind}"
    process = started(tmp_path, arguments, CODE.format(patch=SLOW[kind], marks=str(marks)))
    deadline = time.monotonic() + 200
    while not marks.exists() or marks.read_text().count("begin") <= steps:
        assert time.monotonic() < deadline and not process.ended(), process.wait().stderr
        time.sleep(0.01)
    os.kill(process.pid, number)
    return process.wait(), marks.read_text().split()


def started(tmp_path, arguments, code=None):
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    return forked.start([*arguments, *paths], env, code=code)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_bank_that_fills(tmp_path, number, status):
    done, marks = signalled(tmp_path, "bank", BANK, number, steps=3)
    assert done.returncode == status and f"stopped by {number.name}" in done.stderr, done.stderr
    assert "task=encode crop=random_k4" in done.stderr and "Traceback" not in done.stderr
    assert marks.count("begin") == marks.count("end") == 4  # the group in work was ended, no other begun
    kept = shard_bytes(tmp_path / "banks")
    assert kept and not list(tmp_path.rglob("*.partial-*")) and not list(tmp_path.rglob("manifest.json"))
    for lock in (tmp_path / "banks").rglob("*.lock"):
        from filelock import FileLock

        FileLock(lock).acquire(timeout=0)  # nobody holds a claim


def test_a_stream_that_is_scored_and_the_same_command(tmp_path):
    done, marks = signalled(tmp_path, "stream", STREAM, signal.SIGTERM, steps=6)
    assert done.returncode == 143 and "stopped by SIGTERM" in done.stderr, done.stderr
    assert marks.count("begin") == marks.count("end") == 7
    again = started(tmp_path, STREAM).wait()
    assert again.returncode == 0 and "resuming after 24 images" in again.stdout + again.stderr, again.stderr


def test_a_fit_in_a_sweep_ends_the_sweep(tmp_path):
    done, marks = signalled(tmp_path, "fit", ["-m", *FIT, "seed=1,2"], signal.SIGTERM, steps=2)
    assert done.returncode == 143 and "stopped by SIGTERM" in done.stderr, done.stderr
    assert marks.count("begin") == marks.count("end") == 3
    assert not list(tmp_path.rglob("failed.json")) and not list(tmp_path.glob("runs/sweep-*/1"))
    assert "-m task=few_shot" in done.stderr and "seed=1,2" in done.stderr
