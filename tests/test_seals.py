"""Seals: a file that was changed after it was written is named and never read, be it a record, a stream's save or a fit's checkpoint."""

import errno
import json
import logging
import os
import resource

import pytest
import records
import torch
from conftest import session_of
from few_shot_problem import Problem, die_after
from refusals import refused
from test_stream import Dies, scored
from test_stream import settings as stream_settings

from multicrop import cli
from multicrop.adapters import descent
from multicrop.compare import leaderboard
from multicrop.compare.collect import collect
from multicrop.files import DamagedFileError, Identity, read_sealed, write_manifest, write_sealed, write_text
from multicrop.record import FILES, Predictions, RecordError, read_record, write_pointer
from multicrop.runs import finished_runs
from multicrop.runs.job_folder import folder_state
from multicrop.runs.session import inject

PARTS = {"encoder": "e", "data": "d", "aggregator": "a", "code": "c"}


def flipped(path, place=0.6):
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def zeroed_tail(path):
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-5])


DAMAGES = {
    "a bit": flipped,
    "the header": lambda path: flipped(path, 0.05),
    "the seal": lambda path: flipped(path, 0.0),
    "a zeroed tail": zeroed_tail,
    "a lost tail": truncated,
    "emptied": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_bytes(b"\x00" * 400),
}


class TestSealedFiles:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_is_named_and_not_read(self, damage, tmp_path):
        path = tmp_path / "file.sealed"
        write_sealed(path, bytes(range(200)), "run 1")
        assert read_sealed(path, "run 1") == bytes(range(200))
        DAMAGES[damage](path)
        with refused(str(path), "checksum", error=DamagedFileError):
            read_sealed(path, "run 1")

    def test_the_meaning_is_sealed_with_the_content(self, tmp_path):
        write_sealed(tmp_path / "file", b"content", "run 1")
        with refused("belongs to another run", error=DamagedFileError):
            read_sealed(tmp_path / "file", "run 2")
        write_sealed(tmp_path / "file", b"1content", "run ")
        with pytest.raises(DamagedFileError):
            read_sealed(tmp_path / "file", "run 1")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A stream that was killed after some saves, and what a whole stream gives."""
    folder = tmp_path_factory.mktemp("stopped")
    cfg = stream_settings("tda")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        scored(cfg, folder, Dies(6, "exception"))
    (saves,) = folder.iterdir()
    assert len(list(saves.glob("part-*.sealed"))) >= 2
    whole, _, _ = scored(cfg, tmp_path_factory.mktemp("whole"))
    return cfg, {path.name: path.read_bytes() for path in saves.iterdir()}, saves.name, whole.results()


def resumed(stopped, folder, spoil):
    """The results of the stream that goes on after the saves were spoilt, and how many images it found scored."""
    cfg, files, name, _ = stopped
    saves = folder / name
    saves.mkdir()
    for file, content in files.items():
        (saves / file).write_bytes(content)
    spoil(saves)
    task, made, _ = scored(cfg, folder)
    return task.results(), made.resumed


def exchanged(saves):
    one, two = (saves / f"part-{index:05d}.sealed" for index in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


class TestStreamSaves:
    def test_whole_saves_are_resumed(self, stopped, tmp_path):
        results, images = resumed(stopped, tmp_path, lambda saves: None)
        assert images > 0 and all(torch.equal(values, results[name]) for name, values in stopped[3].items())

    @pytest.mark.parametrize("name", ["part-00001.sealed", "state.sealed"])
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_saves_are_set_aside_and_the_stream_starts_anew(self, damage, name, stopped, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            results, images = resumed(stopped, tmp_path, lambda saves: DAMAGES[damage](saves / name))
        assert images == 0 and all(torch.equal(values, results[row]) for row, values in stopped[3].items())
        assert name in caplog.text and len(list(tmp_path.rglob("state.sealed.damaged"))) == 1

    def test_exchanged_parts_and_those_of_another_stream_are_not_read(self, stopped, tmp_path, caplog):
        results, images = resumed(stopped, tmp_path, exchanged)
        assert images == 0 and "part-00000.sealed" in caplog.text
        assert all(torch.equal(values, results[name]) for name, values in stopped[3].items())

    def test_a_part_that_was_saved_again_does_not_fit_an_older_state(self, stopped, tmp_path, caplog):
        """The same part of the same run, but with other rows, as a run that saves at other places writes it."""

        def written_again(saves):
            path = saves / "part-00001.sealed"
            meaning = f"{saves.name} {path.name}"
            content = bytearray(read_sealed(path, meaning))
            content[-1] ^= 1
            write_sealed(path, bytes(content), meaning)

        _, images = resumed(stopped, tmp_path, written_again)
        assert images == 0 and "not the part that state.sealed was saved with" in caplog.text


class TestFitCheckpoints:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_checkpoint_is_set_aside_and_the_fit_starts_anew(self, damage, generator, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(descent, "CHECKPOINT_SECONDS", 0.0)
        problem = Problem(generator)
        knobs = session_of("task=few_shot", "adapter=clip_adapter", "adapter.epochs=4", "adapter.plan_epochs=1").settings.part("adapter")
        whole, killed, again = (inject(knobs.make(), score=problem.score, text=problem.score.text, logit_scale=10.0) for _ in range(3))
        whole.fit(problem.support, problem.validation)
        killed.checkpoint = again.checkpoint = tmp_path / "fit.ckpt"
        with monkeypatch.context() as patched, pytest.raises(KeyError, match="killed"):
            kept = die_after(2, patched)
            killed.fit(problem.support, problem.validation)
        assert all(kept)
        DAMAGES[damage](killed.checkpoint)
        steps, start = [], descent.DescentModule.on_train_epoch_start
        monkeypatch.setattr(descent.DescentModule, "on_train_epoch_start", lambda self: steps.append(1) or start(self))
        again.fit(problem.support, problem.validation)
        assert len(steps) == 4 and again.losses == whole.losses
        assert "fit.ckpt is damaged" in caplog.text and (tmp_path / "fit.ckpt.damaged").is_file()


@pytest.mark.parametrize("write", [write_text, lambda path, text: write_sealed(path, text.encode(), "meaning")])
def test_a_full_disk_names_the_file(write, tmp_path):
    """A child, because the limit of a process cannot be raised again by all users."""
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            write(tmp_path / "some.json", "x" * 1000)
        except OSError as error:
            os._exit(error.errno if str(tmp_path / "some.json") in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EFBIG and not list(tmp_path.iterdir())


@pytest.fixture
def record(tmp_path):
    return records.write(tmp_path / "out" / "run", parts=PARTS, examples=[records.example()])


class TestRecords:
    @pytest.mark.parametrize("name", ["predictions.parquet", "metrics.json", "config.yaml", "data.json", "identity.json", "examples.json"])
    @pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
    def test_a_flipped_bit_is_noticed_and_the_file_named(self, name, place, record):
        read_record(record)
        flipped(record / name, place)
        with refused(str(record), name, error=RecordError):
            read_record(record)

    def test_an_edited_digit_is_neither_read_nor_shown_by_a_sweep(self, record):
        path = record / "metrics.json"
        accuracy = json.loads(path.read_text())["rows"]["final"]["accuracy"]
        assert folder_state(record).accuracy == accuracy
        path.write_text(path.read_text().replace(str(accuracy), "0.9875"))
        assert folder_state(record).done and folder_state(record).accuracy is None
        with refused("metrics.json was damaged or changed", error=RecordError):
            read_record(record)

    def test_an_emptied_or_foreign_table_of_predictions_is_noticed(self, record, tmp_path):
        other = records.write(tmp_path / "other", accuracy=0.1)
        for content in (b"", (other / "predictions.parquet").read_bytes()):
            (record / "predictions.parquet").write_bytes(content)
            with refused("predictions.parquet was damaged or changed", error=RecordError):
                read_record(record)

    def test_a_damaged_or_lost_manifest_is_named(self, record):
        for spoil in (flipped, lambda path: path.unlink()):
            spoil(record / "manifest.json")
            with refused("manifest.json", error=RecordError):
                read_record(record)
        assert folder_state(record).accuracy is None

    @pytest.mark.parametrize("last", [name for name in FILES if name not in ("splits.json", "stream.csv", "explanations.png")])
    def test_new_files_are_never_read_beside_old_ones(self, last, record, monkeypatch):
        """A record is written over an older one and killed before one of its files."""
        import multicrop.record.folder as module

        def until(path, write):
            if path.name == last:
                raise KeyError("killed")
            write()

        text, table, manifest = module.write_text, Predictions.write, write_manifest
        monkeypatch.setattr(module, "write_text", lambda path, content: until(path, lambda: text(path, content)))
        monkeypatch.setattr(Predictions, "write", lambda self, path: until(path, lambda: table(self, path)))
        monkeypatch.setattr(module, "write_manifest", lambda at, names: until(at / "manifest.json", lambda: manifest(at, names)))
        with pytest.raises(KeyError, match="killed"):
            records.write(record, parts=PARTS, accuracy=0.3, examples=[records.example()])
        with pytest.raises(RecordError, match="killed or has not finished"):
            read_record(record)
        assert folder_state(record).accuracy is None

    def test_a_record_without_pictures_does_not_inherit_those_of_an_older_one(self, record):
        records.write(record, parts=PARTS)
        assert not (record / "examples.json").exists() and "examples.json" not in (record / "manifest.json").read_text()

    @pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
    def test_a_damaged_pointer_is_named(self, place, record, tmp_path):
        job = tmp_path / "sweep" / "0"
        job.mkdir(parents=True)
        write_pointer(job, record)
        assert read_record(job).folder == record.resolve()
        flipped(job / "record.json", place)
        with refused("record.json", str(job), error=RecordError):
            read_record(job)
        assert folder_state(job).accuracy is None

    def test_exchanged_pointers_are_named(self, record, tmp_path):
        jobs = [tmp_path / "sweep" / name for name in "01"]
        for job, target in zip(jobs, (record, records.write(tmp_path / "other", accuracy=0.2)), strict=True):
            job.mkdir(parents=True)
            write_pointer(job, target)
        (jobs[1] / "record.json").rename(jobs[0] / "record.json")
        with refused("record.json", str(jobs[0]), error=RecordError):
            read_record(jobs[0])

    def test_a_record_takes_the_place_of_a_pointer(self, record, tmp_path):
        job = tmp_path / "sweep" / "0"
        job.mkdir(parents=True)
        write_pointer(job, record)
        records.write(job, accuracy=0.2)
        assert read_record(job).folder == job and read_record(job).accuracy != read_record(record).accuracy

    def test_records_of_format_2_are_read_without_a_manifest(self, record):
        metrics = json.loads((record / "metrics.json").read_text())
        (record / "metrics.json").write_text(json.dumps(metrics | {"format": 2}))
        for name in ("manifest.json", "identity.json"):
            (record / name).unlink()
        assert read_record(record).identity is None and folder_state(record).accuracy == metrics["rows"]["final"]["accuracy"]

    def test_the_index_leads_only_to_the_record_of_its_identity(self, record, tmp_path):
        outputs, key = tmp_path / "out", Identity(PARTS).key
        finished_runs.enter(outputs, key, record)
        assert finished_runs.find(outputs, key) is not None
        records.write(record, parts=PARTS | {"aggregator": "another"})
        assert finished_runs.find(outputs, key) is None


def shown(capsys, *arguments, status=0):
    with pytest.raises(SystemExit) as done:
        cli.main([*map(str, arguments)])
    out = capsys.readouterr().out
    assert done.value.code == status, out
    return out


class TestShownAndCompared:
    def test_show_prints_identity_model_and_data_and_checks_the_files(self, record, tmp_path, capsys):
        other = records.write(tmp_path / "other", parts=PARTS | {"aggregator": "b"})
        out = shown(capsys, "record", "show", record, other)
        for said in (
            Identity(PARTS).key,
            "aggregator a",
            "CLIPModel, 1,234,567 parameters, fp32, weights 5eed",
            "zoo (test): 120 images, 4",
        ):
            assert said in out
        assert f"{record} and {other} differ in: aggregator\n" in out and out.count("as the run wrote them") == 2
        flipped(record / "predictions.parquet")
        assert "DAMAGED" in (out := shown(capsys, "record", "show", record, status=1)) and "predictions.parquet" in out

    def test_runs_on_other_data_are_not_paired_and_the_parts_are_named(self, tmp_path):
        """The records agree in fingerprint, ids and labels; the class names differ."""
        base = records.write(tmp_path / "base", parts=PARTS, aggregator="max")
        records.write(tmp_path / "same", parts=PARTS | {"aggregator": "b"})
        records.write(tmp_path / "foreign", parts=PARTS | {"data": "other", "code": "newer"}, aggregator="topk")
        blocks = leaderboard.blocks(collect([tmp_path])[0], collect([base])[0])
        (paired,) = [block for block in blocks if len(block.entries) == 2]
        (alone,) = [block for block in blocks if len(block.entries) == 1]
        assert "the identities of these runs differ in: aggregator" in paired.notes
        assert alone.entries[0].comparison is None and "(their identities differ in: code, data)" in " ".join(alone.notes)
