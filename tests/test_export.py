"""`multicrop export`, protocol versions, and `multicrop compare --published`."""

import csv
import hashlib
import json
import os
import re

import pyarrow.parquet as pq
import pytest
import records
import yaml
from refusals import refused

from multicrop import cli
from multicrop.compare.beside_published import differences, published_table
from multicrop.compare.export import export
from multicrop.compare.leaderboard import blocks
from multicrop.compare.published import published_figures
from multicrop.compare.run import read_run
from multicrop.record import read_record

IMAGES = 12
ROWS = ("global", "crops_mean", "final", "aggregated")


@pytest.fixture
def runs(tmp_path):
    """Two jobs of a sweep and a run beside it, two of which have folders of one name."""
    places = [tmp_path / "sweep" / "0", tmp_path / "sweep" / "1", tmp_path / "other" / "0"]
    facts = {"argv": ["run.py", "crop=random_k4"], "git_revision": "abc"}
    written = [records.write(place, images=IMAGES, draw=draw, ranks=True, facts=facts) for draw, place in enumerate(places)]
    return [read_run(place) for place in written]


def lines_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_csv_has_a_line_per_run_and_row_and_one_per_image(runs, tmp_path):
    lines, images = map(lines_of, export(runs, tmp_path / "out", "csv"))
    assert [line["run"] for line in lines[::4]] == ["sweep/0", "sweep/1", "other/0"] and len(lines) == 3 * len(ROWS)
    final = next(line for line in lines if line["run"] == "sweep/1" and line["row"] == "final")
    assert float(final["accuracy"]) == pytest.approx(runs[1].accuracy) and final["model"] == "tiny" and final["crop"] == "random_k4"
    assert len(images) == 3 * len(ROWS) * IMAGES
    own = [line for line in images if line["run"] == "sweep/1" and line["row"] == "final"]
    assert sum(line["correct"] == "True" for line in own) / IMAGES == pytest.approx(runs[1].accuracy)
    scored = runs[1].predictions
    assert [line["prediction"] for line in own] == [records.NAMES[c] for c in scored.rows["final"]]
    assert [line["rank"] for line in own] == [str(rank) for rank in scored.ranks["final"]] and own[0]["image_id"] == scored.image_id[0]


def test_a_folder_for_the_hub_names_its_files_and_holds_what_csv_holds(runs, tmp_path):
    *tables, card = export(runs, tmp_path / "out", "hf")
    configs = yaml.safe_load(card.read_text().split("---")[1])["configs"]
    assert [config["data_files"] for config in configs] == [path.name for path in tables]
    read = [pq.read_table(path).to_pylist() for path in tables]
    for lines, path in zip(read, export(runs, tmp_path / "csv", "csv"), strict=True):
        assert [{k: "" if v is None else str(v) for k, v in line.items()} for line in lines] == lines_of(path)


def test_every_eval_ever_links_results_and_instances(runs, tmp_path):
    whole, samples, *_ = export(runs, tmp_path / "out", "every-eval-ever", organization="us")
    assert whole.parent == tmp_path / "out" / "zoo" / "multicrop" / "tiny" and re.fullmatch(r"sweep-0-[0-9a-f]{8}\.json", whole.name)
    found, text = json.loads(whole.read_text()), samples.read_text()
    needed = {
        "schema_version",
        "evaluation_id",
        "retrieved_timestamp",
        "source_metadata",
        "model_info",
        "eval_library",
        "evaluation_results",
    }
    assert needed <= set(found) and found["source_metadata"]["source_organization_name"] == "us"
    detailed = found["detailed_evaluation_results"]
    assert detailed["file_path"] == samples.name and detailed["checksum"] == hashlib.sha256(text.encode()).hexdigest()
    instances = [json.loads(line) for line in text.splitlines()]
    assert detailed["total_rows"] == len(instances) == len(ROWS) * IMAGES
    assert {one["evaluation_id"] for one in instances} == {found["evaluation_id"]}
    for result in found["evaluation_results"]:
        own = [one["evaluation"]["score"] for one in instances if one["evaluation_name"] == result["evaluation_name"]]
        assert sum(own) / IMAGES == pytest.approx(result["score_details"]["score"])
        assert {"evaluation_name", "source_data", "metric_config", "score_details"} <= set(result)
        texts = [result["score_details"]["details"], *(result[part]["additional_details"] for part in ("source_data", "generation_config"))]
        assert all(isinstance(value, str) for part in texts for value in part.values())
    answer = instances[0]["answer_attribution"][0]
    assert answer["extracted_value"] == instances[0]["output"]["raw"][0] and instances[0]["messages"] is None


def test_runs_whose_names_are_alike_have_files_of_their_own(tmp_path):
    places = [tmp_path / name for name in ("x/a/b", "x/a-b", "y/b")]
    one, like, later = (read_run(records.write(place, images=IMAGES, draw=draw)) for draw, place in enumerate(places))
    os.utime(later.folder / "metrics.json", (1, 1))
    calls = [[one, like], [one], [later]]  # alone, both are named b
    written = [path for runs in calls for path in export(runs, tmp_path / "out", "every-eval-ever")]
    found = [json.loads(path.read_text()) for path in written[::2]]
    assert len(set(written)) == 8 and len({each["evaluation_id"] for each in found}) == 4
    scores = [each["evaluation_results"][-1]["score_details"]["score"] for each in found]
    assert scores == pytest.approx([run.metrics["rows"]["aggregated"]["accuracy"] for run in (one, like, one, later)])
    assert export([one, like], tmp_path / "out", "every-eval-ever") == written[:4]


def test_the_command_writes_and_lists_the_files(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(runs[0].folder.parent), "-o", str(tmp_path / "out"), "--format", "hf"])
    assert ended.value.code == 0 and f"written: {tmp_path}/out/runs.parquet" in capsys.readouterr().out
    assert {row["run"] for row in pq.read_table(tmp_path / "out" / "runs.parquet").to_pylist()} == {"0", "1"}


class TestProtocol:
    def test_runs_of_two_versions_of_a_component_are_not_compared(self, tmp_path, monkeypatch):
        older = records.write(tmp_path / "older", draw=1)
        monkeypatch.setattr("multicrop.record.protocol.VERSIONS", {"x.dnd": 2})
        newer = records.write(tmp_path / "newer", draw=2)
        assert read_record(newer).protocol == {"x.random_k4": 1, "x.dnd": 2}
        with refused("x.dnd has protocol version 1", str(older), "2 in", str(newer), "run the older ones again"):
            blocks([read_run(older), read_run(newer)])
        with refused("x.dnd has protocol version 2"):
            blocks([read_run(newer)], [read_run(older)])
        assert len(blocks([read_run(newer)])) == 1

    def test_a_version_of_what_only_one_run_has_does_not_matter(self, tmp_path, monkeypatch):
        older = records.write(tmp_path / "older", aggregator="max")
        monkeypatch.setattr("multicrop.record.protocol.VERSIONS", {"x.dnd": 2})
        assert len(blocks([read_run(older), read_run(records.write(tmp_path / "newer"))])) == 1


class TestPublished:
    """Of a run of WCA's setting of CLIP on CUB."""

    def run(self, folder, *more, **changed):
        argv = ["run.py", "experiment=zero_shot/clip", "dataset=cub200", "model=clip_vit_b16", "paths.data=/data", *more]
        run = read_run(records.write(folder, facts={"argv": argv}))
        chosen = {"experiment": "zero_shot/clip", "dataset": "cub200", "model": "clip_vit_b16"}
        run.environment["choices"].update(chosen | changed)
        return run

    def test_the_row_names_both_numbers_and_the_differences(self, tmp_path):
        run = self.run(tmp_path / "run", "crop_seed=3", "trainer=gpu")
        other = self.run(tmp_path / "other", dataset="zoo")
        table = published_table([run, other])
        (row,) = table.cells()
        assert row[1:3] == ["zero_shot/clip, cub200, clip_vit_b16", "56.01"] and row[3] == f"{100 * run.accuracy:.2f}"
        assert row[4] == f"{100 * run.accuracy - 56.01:+.2f}" and row[5] == "here crop_seed=3; one template"
        assert table.notes[0].startswith("1 of 2 runs have no published number")

    def test_of_a_sweep_the_value_of_the_run_is_named(self, tmp_path):
        run = self.run(tmp_path / "run", "seed=1,2", "-m")
        (figure,) = published_figures("zero_shot/clip", "cub200", "clip_vit_b16")
        assert differences(run, figure) == ["here seed=1", "one template"]

    def test_what_only_the_published_command_sets_is_named(self, tmp_path):
        run = self.run(tmp_path / "run", experiment="zero_shot/cupl")
        (figure,) = published_figures("zero_shot/cupl", "cub200", "clip_vit_b16")
        assert "published prompt.file=PATH" in differences(run, figure)

    def test_the_command_shows_it(self, tmp_path, capsys):
        records.write(tmp_path / "run")
        with pytest.raises(SystemExit):
            cli.main(["compare", str(tmp_path / "run"), "--published", "--format", "markdown"])
        assert "published numbers of the same settings" in capsys.readouterr().out
