"""`multicrop import`: exports of others as records, which tables and pages show beside one's own and mark."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import records
from conftest import ROOT
from refusals import refused

from multicrop import cli
from multicrop.compare.collect import collect
from multicrop.compare.export import export
from multicrop.compare.foreign import import_runs
from multicrop.compare.leaderboard import blocks
from multicrop.compare.page import page_data
from multicrop.compare.run import read_run
from multicrop.compare.tables import leaderboard_table

IMAGES = 40
FORMS = ("csv", "hf", "every-eval-ever")
REVISION = "1a2b3c4d5e6f"


@pytest.fixture
def theirs(tmp_path):
    """Two runs of somebody else: a few-shot run with domains and ranks, and another seed of it."""
    facts = {"argv": ["run.py", "crop=random_k4"], "git_revision": REVISION}
    made = [records.write(tmp_path / "theirs" / str(n), images=IMAGES, draw=n, seed=n, ranks=True, facts=facts) for n in (1, 2)]
    return [read_run(place) for place in made]


def same(one, two):
    a, b = one.sorted_predictions, two.sorted_predictions
    assert a.image_id == b.image_id and a.domain == b.domain and np.array_equal(a.label, b.label)
    assert all(np.array_equal(a.rows[row], b.rows[row]) for row in ("global", "crops_mean", "aggregated", "final"))


@pytest.mark.parametrize("form", [*FORMS, "records"])
def test_a_record_comes_back_from_each_format(form, theirs, tmp_path):
    place = tmp_path / "theirs"
    if form != "records":
        place = tmp_path / form
        export(theirs, place, form, organization="alice")
    found = [read_run(folder) for folder in import_runs(place, tmp_path / "imported", by="alice")]
    for before, after in zip(theirs, found, strict=True):
        same(before, after)
        assert after.accuracy == pytest.approx(before.accuracy) and after.class_names == before.class_names
        assert after.seeds == before.seeds and after.views == before.views and after.protocol == before.protocol
        assert after.name == before.name and after.choices == {k: v for k, v in before.choices.items() if k in after.choices}
        assert after.origin == f"alice, {REVISION[:7]}" and after.same_images(before) and not before.imported
        assert after.sorted_predictions.accuracy(k=3) == before.sorted_predictions.accuracy(k=3)


@pytest.mark.parametrize("form", FORMS)
def test_the_export_names_who_ran_it(form, theirs, tmp_path):
    export(theirs, tmp_path / "out", form, organization="A. B. / C")
    (folder, _) = import_runs(tmp_path / "out", tmp_path / "imported")
    assert read_run(folder).imported["by"] == "A. B. / C" and folder.parent.name == "A._B._C"


def test_one_file_of_every_eval_ever_is_one_run(theirs, tmp_path):
    written = export(theirs, tmp_path / "out", "every-eval-ever")
    assert len(import_runs(written[0], tmp_path / "imported")) == 1


@pytest.mark.parametrize("form", [*FORMS, "records"])
def test_all_rows_come_back_and_the_comparison_is_the_same(form, tmp_path):
    """Few-shot runs of two settings and two seeds, whose aggregator and further aggregators they share, and one of another aggregator."""
    how = {"images": IMAGES, "ranks": True, "task": "few_shot", "beside": ("max", "lazsl")}
    for number, (seed, aggregator, alpha) in enumerate([(1, "dnd", 1), (2, "dnd", 1), (1, "dnd", 2), (1, "mean", 1)]):
        where = tmp_path / "theirs" / str(number)
        records.write(where, **how, draw=7 if aggregator == "dnd" else 8, seed=seed, aggregator=aggregator, knobs={"alpha": alpha})
    before, place = collect([tmp_path / "theirs"])[0], tmp_path / "theirs"
    if form != "records":
        place = tmp_path / form
        export(before, place, form)
    after = [read_run(folder) for folder in import_runs(place, tmp_path / "imported", by="alice")]
    for one, two in zip(before, after, strict=True):
        rows = [
            {row: {k: v for k, v in found.items() if v is not None} for row, found in run.metrics["rows"].items()} for run in (one, two)
        ]
        assert rows[0] == rows[1] and len(rows[0]) == 6 and one.metrics["row_seconds"] == two.metrics["row_seconds"]
    values = []
    for runs in (before, after):
        (block,) = blocks(runs)
        rows = leaderboard_table(block, "baseline").rows
        kept = [{k: v for k, v in row.items() if k not in ("method", "run_by", "record")} | {"name": row["method"][:9]} for row in rows]
        values.append(sorted(kept, key=repr))
    assert len(values[0]) == 9 and repr(values[0]) == repr(values[1])


@pytest.mark.parametrize("form", FORMS)
def test_exports_of_two_people_in_one_folder_stay_apart(form, theirs, tmp_path):
    for name, run in zip(("alice", "bob"), theirs, strict=True):
        folder = shutil.copytree(run.folder, tmp_path / name / "run")  # runs of one name
        export([replace(run, folder=folder)], tmp_path / "all" / name / "out", form, organization=name)
    found = [read_run(folder) for folder in import_runs(tmp_path / "all", tmp_path / "imported")]
    assert [run.imported["by"] for run in found] == ["alice", "bob"]
    for before, after in zip(theirs, found, strict=True):
        same(before, after)


@pytest.mark.parametrize("form", FORMS)
def test_two_classes_of_one_name_stay_two(form, tmp_path):
    before = read_run(records.write(tmp_path / "theirs", images=IMAGES, names=["crane", "missile", "crane", "missile"]))
    export([before], tmp_path / "out", form)
    (folder,) = import_runs(tmp_path / "out", tmp_path / "imported")
    same(before, read_run(folder))


def test_a_table_of_several_people_pairs_and_marks_their_runs(theirs, tmp_path):
    own = records.write(tmp_path / "own", images=IMAGES, draw=1, ranks=True, facts={"git_revision": "fffffff0"})
    for name in ("alice", "bob"):
        import_runs(tmp_path / "theirs", tmp_path / "imported", by=name)
    runs, problems = collect([own, tmp_path / "imported"])
    (block,) = blocks(runs)
    table = leaderboard_table(block, "baseline")
    rows = {row["method"]: row for row in table.rows}
    assert not problems and {row["run_by"] for row in table.rows} >= {"own, fffffff", f"alice, {REVISION[:7]}", f"bob, {REVISION[:7]}"}
    assert rows["dnd, random_k4, imported from alice"]["runs"] == 2 and rows["dnd, random_k4"]["runs"] == 1
    assert rows["dnd, random_k4, imported from alice"]["difference"] is not None
    assert rows["global view, imported from bob"]["run_by"] == f"bob, {REVISION[:7]}" and rows["global view"]["run_by"] == "own, fffffff"
    cells = [entry["cells"] for entry in page_data([block], "baseline", 0)["entries"]]
    assert {line["run by"] for line in cells} == {row["run_by"] for row in table.rows}
    assert "run by" not in leaderboard_table(blocks([read_run(own)])[0], "baseline").columns


def test_methods_with_the_same_options_are_told_apart(theirs, tmp_path):
    other = records.write(tmp_path / "theirs" / "3", images=IMAGES, draw=3, knobs={"fusion_weight": 0.5})
    assert read_run(other).method != theirs[0].method
    runs = [read_run(folder) for folder in import_runs(tmp_path / "theirs", tmp_path / "imported", by="alice")]
    named = [entry.label for entry in blocks(runs)[0].entries if "imported" in entry.label and "configuration" in entry.label]
    assert len(named) == len(set(named)) == 2


def test_versions_are_not_mixed(theirs, tmp_path, monkeypatch):
    import_runs(tmp_path / "theirs", tmp_path / "imported", by="alice")
    monkeypatch.setattr("multicrop.record.protocol.VERSIONS", {"x.dnd": 2})
    own = records.write(tmp_path / "own", images=IMAGES)
    runs, _ = collect([own, tmp_path / "imported"])
    with refused("x.dnd has protocol version"):
        blocks(runs)


def test_what_was_seen_in_training_comes_along(theirs, tmp_path):
    marked = replace(theirs[0], data=theirs[0].data | {"training_data": ["noto", "b"], "seen": ["noto"]})
    export([marked], tmp_path / "out", "csv")
    (folder,) = import_runs(tmp_path / "out", tmp_path / "imported")
    assert read_run(folder).training_note == marked.training_note != ""


class TestRefused:
    def test_a_place_that_holds_no_export(self, tmp_path):
        with refused("nowhere does not exist", "multicrop export"):
            import_runs(tmp_path / "nowhere", tmp_path / "imported")
        (tmp_path / "empty").mkdir()
        with refused("holds no record"):
            import_runs(tmp_path / "empty", tmp_path / "imported")

    def test_an_accuracy_that_the_images_do_not_give(self, theirs, tmp_path):
        export(theirs, tmp_path / "out", "csv")
        path = tmp_path / "out" / "images.csv"
        path.write_text(path.read_text().replace("dugong,dugong,1,1,True", "dugong,okapi,1,0,False", 1))
        with refused("states an accuracy of", "its images give"):
            import_runs(tmp_path / "out", tmp_path / "imported")
        assert not (tmp_path / "imported").exists()

    def test_a_row_without_images(self, theirs, tmp_path):
        export(theirs, tmp_path / "out", "csv")
        path = tmp_path / "out" / "images.csv"
        path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if ",crops_mean," not in line))
        with refused("lacks images of the rows crops_mean", "export it again"):
            import_runs(tmp_path / "out", tmp_path / "imported")

    @pytest.mark.parametrize("form", FORMS)
    def test_a_damaged_file(self, form, theirs, tmp_path):
        *_, damaged = [path for path in export(theirs, tmp_path / "out", form) if path.suffix not in (".md", ".json")]
        damaged.write_bytes(b"x,y\n{")
        with refused("is no export that can be read", "export it again"):
            import_runs(tmp_path / "out", tmp_path / "imported")


def test_the_commands_of_the_page(theirs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "theirs", tmp_path / "outputs")
    export(theirs, tmp_path / "FOLDER_OF_ALICE", "csv")
    text = (ROOT / "docs" / "compare.md").read_text()
    commands = [line.split()[1:] for line in text.split("## Results of others")[1].split("```bash\n")[1].split("```")[0].splitlines()]
    for words in commands:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "alice" in said.split("zoo (test)")[1] and (tmp_path / "leaderboard.html").is_file()
