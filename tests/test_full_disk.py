"""A full disk: each file that a run writes is named in one message with the knob that chooses another place, and no part of it stays."""

import errno
from pathlib import Path

import pytest
import records
import test_stream
from refusals import refused

from multicrop.adapters.sealed_checkpoint import SealedCheckpoint
from multicrop.record import read_record, write_pointer
from multicrop.runs import finished_runs, job_folder, sweep

SAID = ("cannot write", "No space left on device", "free some disk space")


def fill_disk(monkeypatch, name):
    """The disk is full when the file of this name takes its place; its temporary file is there by then."""
    replaced, tried = Path.replace, []

    def full(self, to):
        if Path(to).name != name:
            return replaced(self, to)
        assert self.is_file()
        tried.append(self)
        raise OSError(errno.ENOSPC, "No space left on device", str(self), None, str(to))

    monkeypatch.setattr(Path, "replace", full)
    return tried


def left(folder):
    return list(folder.rglob("*.partial*"))


@pytest.mark.parametrize("name", ["predictions.parquet", "config.yaml", "data.json", "metrics.json", "identity.json", "manifest.json"])
def test_a_file_of_the_record(name, tmp_path, monkeypatch):
    tried = fill_disk(monkeypatch, name)
    with refused(*SAID, str(tmp_path / "run" / name), "paths.output=FOLDER", error=OSError):
        records.write(tmp_path / "run", parts={"data": "d"})
    assert tried and not left(tmp_path) and not (tmp_path / "run" / "manifest.json").exists()
    with refused("killed or has not finished"):
        read_record(tmp_path / "run")
    assert not job_folder.folder_state(tmp_path / "run").done


@pytest.mark.parametrize("name", ["part-00000.sealed", "state.sealed"])
def test_a_save_of_a_stream(name, tmp_path, monkeypatch):
    tried = fill_disk(monkeypatch, name)
    with refused(*SAID, name, "paths.output=FOLDER", error=OSError):
        test_stream.scored(test_stream.settings("tda"), tmp_path)
    assert tried and not left(tmp_path)


def test_the_checkpoint_of_a_fit(tmp_path, monkeypatch):
    tried = fill_disk(monkeypatch, "key.ckpt")
    with refused(*SAID, str(tmp_path / "fits" / "key.ckpt"), "paths.cache=FOLDER", error=OSError):
        SealedCheckpoint(tmp_path / "fits" / "key.ckpt").save_checkpoint({"state": 1}, "unused")
    assert tried and not left(tmp_path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("record.json", lambda folder: write_pointer(folder, folder / "other")),
        ("failed.json", lambda folder: job_folder.write_failure(folder, "ValueError: x", [])),
        ("key.json", lambda folder: finished_runs.enter(folder, "key", folder / "run")),
    ],
)
def test_a_small_file_of_a_sweep(name, write, tmp_path, monkeypatch):
    tried = fill_disk(monkeypatch, name)
    with refused(*SAID, name, "paths.output=FOLDER", error=OSError):
        write(tmp_path)
    assert tried and not left(tmp_path)


def test_a_sweep_continues_when_the_failure_of_a_job_cannot_be_written(tmp_path, monkeypatch, caplog):
    job = tmp_path / "0"
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "overrides.yaml").write_text("- seed=1\n")
    monkeypatch.setattr(sweep, "_UNWRITTEN", {})
    fill_disk(monkeypatch, "failed.json")
    sweep.leave_failure(job, ValueError("the job's own error"))
    assert "cannot write" in caplog.text and "failed.json" in caplog.text
    assert sweep.scan(tmp_path, 1).failed == {"0: seed=1": "ValueError: the job's own error"}  # else the sweep would end with status 0


def test_a_record_that_was_killed_before_its_manifest_is_not_finished(tmp_path):
    folder = records.write(tmp_path / "run")
    assert job_folder.folder_state(folder) == job_folder.FolderState(True, read_record(folder).accuracy)
    (folder / "manifest.json").unlink()
    assert job_folder.folder_state(folder) == job_folder.FolderState(False)
