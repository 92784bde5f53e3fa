"""SIGTERM and SIGINT while a bank fills, a stream is scored or an adapter is fitted: the run ends between two batches, and says so."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import forked
import pytest
from test_bank import shard_bytes

from multicrop.features import StopBetweenBatches, Stopped, loop, stop_on_signals
from multicrop.features.stops import DEFAULTS

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


@pytest.fixture
def handlers():
    """The handlers that a process starts with, for the signals that stop a run."""
    kept = {number: signal.signal(number, handler) for number, handler in DEFAULTS.items()}
    yield
    assert {number: signal.getsignal(number) for number in DEFAULTS} == DEFAULTS
    for number, handler in kept.items():
        signal.signal(number, handler)


def stop(*steps):
    """Run these steps in a block that stops on signals; how it stopped, and the number of steps that came to their end."""
    ended = []
    with pytest.raises(Stopped) as caught, stop_on_signals():
        for step in steps:
            step()
            ended.append(step)
    return caught.value, len(ended)


def send(number):
    return lambda: os.kill(os.getpid(), number)


def test_an_ignored_signal_stays_ignored_and_the_other_one_stops(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stopped, ended = stop(send(signal.SIGINT), send(signal.SIGTERM))
        assert (stopped.number, ended) == (signal.SIGTERM, 1) and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("kind", ["train", "test", "predict"])
def test_a_signal_in_a_loop_waits_for_the_end_of_the_batch(kind, handlers):
    callback = StopBetweenBatches()
    begin, batch, end = (getattr(callback, f"on_{kind}_{when}") for when in ("start", "batch_end", "end"))
    for number in (signal.SIGTERM, signal.SIGINT):
        stopped, steps = stop(begin, batch, send(number), lambda: None, batch)
        assert (stopped.number, stopped.code, steps) == (number, 128 + number, 4)
        assert stop(begin, end, send(number))[1] == 2  # after the loop: at once
        assert stop(begin, callback.on_exception, send(number))[1] == 2
        assert stop(begin, send(number), send(number))[1] == 2  # the second one: at once
        assert stop(send(number))[1] == 0  # what came before is forgotten


def test_a_signal_in_a_loop_without_a_trainer_waits_for_the_end_of_the_batch(handlers):
    ended = []
    with pytest.raises(Stopped) as caught, stop_on_signals(), loop() as end_batch:
        end_batch()
        send(signal.SIGTERM)()
        ended.append("batch")
        end_batch()
        ended.append("another batch")
    assert caught.value.code == 143 and ended == ["batch"]
    with pytest.raises(RuntimeError), stop_on_signals(), loop():
        raise RuntimeError("no")
    assert stop(send(signal.SIGTERM))[1] == 0  # the loop that broke has ended


def test_an_error_after_a_signal_counts_as_the_stop_and_another_stays(handlers):
    def broken():
        raise RuntimeError("a worker got the signal too")

    begin = StopBetweenBatches().on_predict_start
    stopped, steps = stop(begin, send(signal.SIGTERM), broken)
    assert stopped.code == 143 and steps == 2 and isinstance(stopped.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match="a worker"), stop_on_signals():
        begin()
        broken()
    assert stop(send(signal.SIGTERM))[1] == 0  # the loop that broke has ended


def test_the_message_of_a_stop_names_the_command_once_and_without_secrets(handlers, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setattr(sys, "argv", ["run.py", "crop=random k4", "note=hf_abcdefghijklmnop"])
    stop(send(signal.SIGTERM))
    said = capsys.readouterr().err
    python = Path(sys.executable).name
    assert said.startswith("stopped by SIGTERM; ") and f": {python} run.py {shlex.quote('crop=random k4')} " in said
    assert said.count("\n") == 1 and said.endswith("\n") and "abcdefghijklmnop" not in said
    monkeypatch.setenv("LOCAL_RANK", "1")
    stop(send(signal.SIGTERM))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    stop(send(signal.SIGTERM))
    assert capsys.readouterr().err == said
