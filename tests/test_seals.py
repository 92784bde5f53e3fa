"""Seals: a file that was changed after it was written is named and never read, be it a record, a stream's save or a fit's checkpoint."""

import errno
import json
import logging
import os
import resource
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import records
import torch
import yaml
from conftest import session_of
from few_shot_problem import Problem, die_after
from refusals import refused
from test_stream import scored
from test_stream import settings as stream_settings

from multicrop import cli
from multicrop.adapters import descent
from multicrop.compare import leaderboard
from multicrop.compare.collect import collect
from multicrop.files import DamagedFileError, Identity, read_sealed, write_manifest, write_sealed, write_text
from multicrop.record import (
    FILES,
    ROWS,
    Predictions,
    RecordError,
    Scores,
    failure,
    read_record,
    resolved,
    stored_accuracy,
    write_pointer,
    write_record,
)
from multicrop.record.predictions import read_scores
from multicrop.runs import finished_runs
from multicrop.runs.injectables import inject
from multicrop.runs.job_folder import folder_state

OF_TASKS = ("splits.json", "stream.csv", "chosen.yaml", "adapter.safetensors", "choice.csv", "unknown.parquet")  # not of every run
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
        scored(cfg, folder, (6, "exception"))
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
        offered = SimpleNamespace(score=problem.score, text=problem.score.text, logit_scale=10.0)
        whole, killed, again = (inject(knobs.make(), offered) for _ in range(3))
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

    def test_the_manifest_of_another_record_is_named(self, record, tmp_path):
        other = records.write(tmp_path / "other", accuracy=0.2)
        (record / "manifest.json").write_bytes((other / "manifest.json").read_bytes())
        with refused("predictions.parquet", "manifest.json is another run's", error=RecordError):
            read_record(record)

    def test_a_damaged_or_lost_manifest_is_named(self, record):
        for spoil in (flipped, lambda path: path.unlink()):
            spoil(record / "manifest.json")
            with refused("manifest.json", error=RecordError):
                read_record(record)
        assert folder_state(record).accuracy is None

    @pytest.mark.parametrize("last", [name for name in FILES if name not in (*OF_TASKS, "explanations.png")])
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

    @pytest.mark.parametrize(
        ("found", "remedy"), [(3, "run the experiment again"), (5, "update multicrop"), (None, "run the experiment again")]
    )
    def test_records_of_another_format_are_refused_with_the_remedy(self, found, remedy, record):
        path = record / "metrics.json"
        metrics = {name: value for name, value in json.loads(path.read_text()).items() if name != "format"}
        path.write_text(json.dumps(metrics if found is None else metrics | {"format": found}))
        reseal(record)
        with refused(str(record), f"metrics.json has format {found or 1}, this version reads format 4", remedy, error=RecordError):
            read_record(record)
        assert folder_state(record).accuracy is None

    def test_the_index_leads_only_to_the_record_of_its_identity(self, record, tmp_path):
        outputs, key = tmp_path / "out", Identity(PARTS).key
        finished_runs.enter(outputs, key, record)
        assert finished_runs.find(outputs, key) is not None
        records.write(record, parts=PARTS | {"aggregator": "another"})
        assert finished_runs.find(outputs, key) is None


SCORES = Scores(np.array([[1, 0], [2, 1]]), np.array([[0.5, 0.25], [1.5, -0.5]]), np.array([1.1, 1.7]))


def predictions(**more):
    rows = {row: np.array([1, number % 3]) for number, row in enumerate((*ROWS, "beside/max"))}
    return Predictions(["a", "b"], np.array([1, 2]), rows, ["photo", ""], **more)


def reseal(folder):
    """The manifest of the files as they are now."""
    write_manifest(folder, [name for name in FILES if name != "manifest.json" and (folder / name).is_file()])


def whole_record(folder, **changes):
    """A record with all of its files."""
    folder.mkdir(exist_ok=True)
    parts = {
        "config": {"task": {"name": "tta"}, "note": "Zürich"},
        "metrics": {"rows": {row: {"accuracy": 0.25} for row in ROWS}},
        "predictions": predictions(ranks={"final": np.array([0, 2])}, scores={"final": SCORES}),
        "environment": {"host": "here"},
        "data": {"dataset": "zoo"},
        "examples": [{"image_id": "a"}],
        "files": {name: f"text of {name}" for name in OF_TASKS},
        "identity": Identity(PARTS),
        "model": {"name": "tiny"},
    }
    write_record(folder, **parts | changes)
    return folder


def rewrite(path, **facts):
    """Change facts of metrics.json, and seal the folder again."""
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    reseal(path.parent)


class TestContentOfARecord:
    def test_predictions_are_read_as_they_were_written(self, tmp_path):
        given = predictions(ranks={"final": np.array([0, 2])})
        given.write(path := tmp_path / "predictions.parquet")
        found = Predictions.read(path)
        assert (found.image_id, found.domain, found.label.tolist(), len(found)) == (["a", "b"], ["photo", ""], [1, 2], 2)
        assert {row: values.tolist() for row, values in found.rows.items()} == {row: given.rows[row].tolist() for row in given.rows}
        assert found.correct("aggregated").tolist() == [True, True] and found.accuracy("beside/max") == 0.5
        assert found.correct().tolist() == [True, False] and found.accuracy() == 0.5
        assert [found.correct(k=k).tolist() for k in (2, 3)] == [[True, False], [True, True]] and found.accuracy(k=3) == 1.0
        with pytest.raises(KeyError):
            found.correct("global", k=2)
        predicted = [f"{row}_prediction" for row in (*ROWS, "beside/max")]
        columns = ["image_id", "domain", "label", "cluster", *predicted, "final_rank"]
        assert sorted(pq.read_table(path).column_names) == sorted(columns)

    @pytest.mark.parametrize("whole", [None, np.array([[-0.5, -1.25, -7], [-0.25, -2, -60000]], dtype=np.float16)])
    def test_the_logits_of_a_row_are_read_when_they_are_asked_for(self, whole, tmp_path):
        given = replace(SCORES, log_probabilities=whole)
        predictions(scores={"final": given}).write(path := tmp_path / "predictions.parquet")
        assert Predictions.read(path).scores == {}
        found = read_scores(path, "final")
        assert found.top_classes.tolist() == [[1, 0], [2, 1]] and found.top_logits.tolist() == [[0.5, 0.25], [1.5, -0.5]]
        assert found.log_sum_exp.tolist() == pytest.approx([1.1, 1.7])
        assert (found.log_probabilities is None) if whole is None else (found.log_probabilities == whole).all()
        assert found.top_probabilities.tolist() == pytest.approx(np.exp([[-0.6, -0.85], [-0.2, -2.2]]))
        with refused("no logits of the row global", error=RecordError):
            read_scores(path, "global")

    def test_a_table_without_a_column_is_damaged(self, tmp_path):
        pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "predictions.parquet")
        with refused(str(tmp_path), "predictions.parquet is damaged", "label", error=RecordError):
            Predictions.read(tmp_path / "predictions.parquet")

    def test_each_part_has_its_file_and_the_manifest_names_all(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-tests")
        (tmp_path / "explanations.png").write_bytes(b"drawn before")
        folder = whole_record(
            tmp_path,
            config={"task": {"name": "tta"}, "key": "secret-of-the-tests", "note": "Zürich"},
            environment={"argv": "secret-of-the-tests"},
        )
        found = read_record(folder)
        assert found.config == {"task": {"name": "tta"}, "key": "<WANDB_API_KEY>", "note": "Zürich"}
        assert (found.environment, found.data, found.model) == ({"argv": "<WANDB_API_KEY>"}, {"dataset": "zoo"}, {"name": "tiny"})
        assert read_record(folder).scores().top_classes.tolist() == [[1, 0], [2, 1]]
        assert found.metrics == {"format": 4, "protocol": {}, "rows": {row: {"accuracy": 0.25} for row in ROWS}} and found.accuracy == 0.25
        assert found.identity == Identity(PARTS) and json.loads((folder / "identity.json").read_text())["key"] == Identity(PARTS).key
        assert json.loads((folder / "examples.json").read_text()) == [{"image_id": "a"}]
        assert all((folder / name).read_text() == f"text of {name}" for name in OF_TASKS)
        names = sorted(path.name for path in folder.iterdir())
        assert names == sorted(FILES) and (folder / "explanations.png").read_bytes() == b"drawn before"
        assert sorted(json.loads((folder / "manifest.json").read_text())["files"]) == [name for name in names if name != "manifest.json"]

    def test_a_record_over_an_older_one_has_its_own_files_alone(self, tmp_path):
        whole_record(tmp_path)
        whole_record(tmp_path, files=None, examples=(), identity=None, model=None)
        assert {path.name for path in tmp_path.iterdir()} == set(FILES) - {
            *OF_TASKS,
            "examples.json",
            "identity.json",
            "explanations.png",
        }
        found = read_record(tmp_path)
        assert found.identity is None and found.model == {}
        assert read_record(whole_record(tmp_path / "nameless", model=None)).model == {}

    def test_a_folder_without_a_whole_record_says_what_is_wrong(self, tmp_path):
        folder = whole_record(tmp_path / "run")
        (folder / "manifest.json").unlink()
        with refused("no manifest.json", "killed or has not finished", error=RecordError):
            read_record(folder)
        for rows in (None, [], {row: {"accuracy": 0.1} for row in ROWS[1:]}, dict.fromkeys(ROWS, 0.1), {row: {} for row in ROWS}):
            rewrite(folder / "metrics.json", rows=rows)
            with refused("metrics.json is damaged", "global, crops_mean, aggregated, final", error=RecordError):
                read_record(folder)
        whole_record(folder, config={"task": None})
        with refused("config.yaml is damaged", "expected task.name", error=RecordError):
            read_record(folder)
        whole_record(folder)
        for gone in ("environment.json", "data.json", "config.yaml"):
            (folder / gone).unlink()
        with refused(f"{folder}: config.yaml, data.json, environment.json is missing", error=RecordError):
            read_record(folder)
        (folder / "metrics.json").write_text("[1]")
        with refused("expected names with values, got list", error=RecordError):
            read_record(folder)

    def test_the_error_of_a_damaged_file_is_one_line(self, tmp_path):
        folder = whole_record(tmp_path)
        (folder / "config.yaml").write_text("task: {name: tta\nnote: [")
        reseal(folder)
        with pytest.raises(RecordError, match=r"config\.yaml is damaged") as caught:
            read_record(folder)
        assert "\n" not in str(caught.value) and isinstance(caught.value.__cause__, yaml.YAMLError)

    def test_a_failed_run_gives_its_error_and_a_pointer_its_record(self, tmp_path):
        assert failure(tmp_path) is None and resolved(tmp_path) == tmp_path
        (tmp_path / "failed.json").write_text('{"error": "ValueError: no"}')
        assert failure(tmp_path) == "ValueError: no"
        with refused("the run failed (ValueError: no)", error=RecordError):
            read_record(tmp_path)
        (tmp_path / "failed.json").write_text("{}")
        assert failure(tmp_path) == "unknown"
        (tmp_path / "job").mkdir()
        folder = whole_record(tmp_path / "run")
        write_pointer(tmp_path / "job", folder)
        assert resolved(tmp_path / "job") == folder.resolve() and read_record(tmp_path / "job").accuracy == 0.25
        for pointer in ("{}", '{"record": "../run", "job": "job", "checksum": "other"}'):
            (tmp_path / "job" / "record.json").write_text(pointer)
            with refused("record.json is damaged", "does not match its checksum", error=RecordError):
                resolved(tmp_path / "job")

    def test_the_accuracy_of_a_sweeps_table_is_that_of_the_final_row(self, tmp_path):
        rows = {row: {"accuracy": 0.1 * number} for number, row in enumerate(ROWS)}
        folder = whole_record(tmp_path, metrics={"rows": rows})
        assert stored_accuracy(folder) == pytest.approx(0.3)
        (folder / "predictions.parquet").unlink()  # is not read
        assert stored_accuracy(folder) == pytest.approx(0.3)
        for facts in ({"rows": {"final": {}}}, {"rows": {}}, {}):
            (folder / "metrics.json").write_text(json.dumps({"format": 4, **facts}))
            write_manifest(folder, ["metrics.json"])
            assert stored_accuracy(folder) is None


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
        own = {id(block): sum(not entry.is_baseline for entry in block.entries) for block in blocks}
        (paired,), (alone,) = ([block for block in blocks if own[id(block)] == count] for count in (2, 1))
        assert "the identities of these runs differ in: aggregator" in paired.notes
        assert alone.entries[0].comparison is None and "(their identities differ in: code, data)" in " ".join(alone.notes)
