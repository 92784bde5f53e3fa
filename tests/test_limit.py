"""`limit=N`: which images a run scores and chooses on, and that records and tables say so."""

from dataclasses import replace

import pytest
import records
from conftest import session_of

from multicrop.compare.identities import shown_record
from multicrop.compare.leaderboard import blocks
from multicrop.compare.run import read_run
from multicrop.data.base import StreamedImages
from multicrop.data.limit import limited
from multicrop.record import DATA, read_record
from multicrop.runs.experiment import evaluate
from multicrop.runs.few_shot import support_and_validation
from multicrop.runs.identity import run_identity

SMALL = ["dataset.n_classes=8", "dataset.test_images=3", "dataset.train_images=4", "dataset.validation_images=2", "crop=random_k1"]


def test_scored_images_lie_at_equal_distances_and_a_larger_limit_changes_nothing():
    whole = session_of(*SMALL)
    few = session_of(*SMALL, "limit=8")
    assert few.scored_images.ids == whole.scored_images.ids[::3] and set(few.scored_images.labels) == set(range(8))
    assert session_of(*SMALL, "limit=24").scored_images.ids == session_of(*SMALL, "limit=99").scored_images.ids == whole.scored_images.ids
    assert run_identity(few, "data") != run_identity(whole, "data") == run_identity(session_of(*SMALL, "limit=24"), "data")


def test_an_adapter_is_selected_on_as_few_and_learns_from_all_shots():
    knobs = {"shots": 2, "few_shot_file": None, "selection": "validation"}
    support, validation = support_and_validation(session_of(*SMALL, "task=few_shot", "limit=5"), **knobs)
    assert len(support) == 16 and len(validation) == 5


@pytest.mark.parametrize("parts", [1, 3])
def test_of_a_stream_the_first_images_are_read(parts):
    def source(part, parts):
        yield from ((str(number), 0, lambda: None) for number in range(part, 30, parts))

    stream = StreamedImages("s", ["a"], source, "f")
    some = limited(stream, 7)
    read = [image_id for part in range(parts) for image_id, *_ in some.source(part, parts)]
    assert len(read) == 7 and set(read) <= {str(number) for number in range(9)}
    assert some.fingerprint != stream.fingerprint != limited(stream, 8).fingerprint and limited(stream, None) is stream


def test_record_and_tables_say_the_limit(tmp_path, capsys):
    settings = session_of(*SMALL, "limit=6", f"paths.cache={tmp_path}", "trainer.progress=false", "pictures=0").settings
    evaluate(replace(settings, output=tmp_path / "run", outputs=tmp_path))
    assert "(test, limit=6)" in " ".join(capsys.readouterr().out.split())
    record = read_record(tmp_path / "run")
    assert record.config["limit"] == record.data["limit"] == 6 and record.metrics["images"] == 6
    assert any("(test, limit=6): 6 images" in line for line in shown_record(record))
    (block,) = blocks([read_run(tmp_path / "run")])
    assert "(test, limit=6): 6 images, 8 classes" in block.name


def test_a_run_without_a_limit_is_the_method_of_an_older_record(tmp_path):
    older = read_run(records.write(tmp_path / "run"))
    newer = replace(older, config=older.config | {"limit": None})
    assert older.method == newer.method != replace(older, config=older.config | {"limit": 4}).method
    assert "limit" not in (older.folder / DATA).read_text()
