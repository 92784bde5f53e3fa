"""Clusters of images: every source that can name them, what a subset keeps, and what a run records."""

import csv
import json
from dataclasses import replace

import datasets as hf_datasets
import numpy as np
import pytest
from conftest import composed, load
from refusals import refused
from small_copies import NAMES, make_coop, make_csv, make_folder, make_tar, picture

from multicrop.compare.statistics import compare
from multicrop.data.base import LabelledImages
from multicrop.record import ROWS, Predictions
from multicrop.runs.identity import _images_hash
from multicrop.runs.results import row_metrics


def patients(root, column):
    """The small CSV with a further column: two patients, and images of no patient."""
    words = make_csv(root)
    with (root / "list.csv").open(newline="") as stream:
        head, *rows = csv.reader(stream)
    with (root / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([[*head, column], *([*row, ("p1", "p2", "")[i % 3]] for i, row in enumerate(rows))])
    return words


def test_a_csv_has_clusters_in_the_column_cluster_or_in_one_that_is_named(tmp_path):
    data = load(*patients(tmp_path / "a", "cluster"))
    assert set(data.test.clusters) == {"p1", "p2", ""} and len(data.test.clusters) == len(data.test)
    assert load(*patients(tmp_path / "b", "patient")).test.clusters is None
    named = load(*patients(tmp_path / "b", "patient"), "dataset.cluster_column=patient")
    assert named.test.clusters == data.test.clusters
    drawn = load(*patients(tmp_path / "a", "cluster"), "dataset.split_column=null")
    with (tmp_path / "a" / "list.csv").open(newline="") as stream:
        cluster_of = {row["path"]: row["cluster"] for row in csv.DictReader(stream)}
    assert drawn.test.clusters == [cluster_of[name] for name in drawn.test.ids]
    with refused("no column session", "dataset.cluster_column"):
        load(*patients(tmp_path / "b", "patient"), "dataset.cluster_column=session")


def test_a_folder_and_coops_layout_find_clusters_in_paths(tmp_path):
    words = make_folder(tmp_path / "folder")
    data = load(*words, r"dataset.cluster_pattern='/(\w+)/[01]\.png'")
    expected = {name: name.split("/")[1] if name.endswith(("0.png", "1.png")) else "" for name in data.test.ids}
    assert dict(zip(data.test.ids, data.test.clusters, strict=True)) == expected
    assert load(*words).test.clusters is None
    assert load(*words, r"dataset.cluster_pattern='[0-9]+\.png'").test.clusters[0] == "0.png"  # no group: all that matches
    with refused("matches none of the", "its first group"):
        load(*words, "dataset.cluster_pattern=patient")
    with refused("is no regular expression"):
        load(*words, "dataset.cluster_pattern='('")
    coop = load(*make_coop(tmp_path / "coop"), r"+dataset.cluster_pattern='^(\w+)/'")
    assert coop.test.clusters == [name.split("/")[0] for name in coop.test.ids]
    assert composed("dataset=ucf101").dataset.cluster_pattern == r"v_(\w+_g\d+)_c"


def test_a_table_and_shards_name_a_column_and_a_field(tmp_path):
    features = hf_datasets.Features({"image": hf_datasets.Image(), "label": hf_datasets.ClassLabel(names=NAMES)})
    features["patient"] = hf_datasets.Value("int64")
    table = {"image": [{"bytes": picture(i), "path": None} for i in range(6)], "label": [i % 3 for i in range(6)]}
    hf_datasets.Dataset.from_dict(table | {"patient": [7, 7, 8, 8, None, 9]}, features=features).to_parquet(tmp_path / "test.parquet")
    words = ["dataset=hf", f"dataset.path={tmp_path}/test.parquet", "dataset.train=null"]
    assert load(*words, "dataset.cluster_column=patient").test.clusters == ["7", "7", "8", "8", "", "9"]
    with refused("no column session", "dataset.cluster_column"):
        load(*words, "dataset.cluster_column=session")
    members = []
    for number, name in enumerate(NAMES):
        facts = json.dumps({"video": f"v{number // 2}"} if number else {})
        members += [(f"{number}.png", picture(number)), (f"{number}.cls", name.encode()), (f"{number}.json", facts.encode())]
    shards = ["dataset=webdataset", f"dataset.test={make_tar(tmp_path / 't.tar', members)}"]
    assert load(*shards, "dataset.cluster_field=video").test.clusters == ["", "v0", "v1"]
    assert load(*shards).test.clusters is None
    for streamed in ([*words, "dataset.cluster_column=patient"], [*shards, "dataset.cluster_field=video"]):
        with refused("stream have no clusters"):
            load(*streamed, "dataset.streaming=true")


def test_scenes_of_a_class_or_a_family_are_a_cluster():
    small = ["dataset=scenes", "dataset.n_classes=8", "dataset.test_images=2"]
    by_class, by_family = load(*small).test, load(*small, "dataset.cluster=family").test
    assert by_class.clusters == [f"class {label}" for label in by_class.labels]
    assert by_family.clusters == [f"family {label // 4}" for label in by_family.labels]
    assert by_class.ids == by_family.ids and by_class.fingerprint == by_family.fingerprint  # one bank serves both
    with refused("dataset.cluster is one of class, family"):
        load(*small, "dataset.cluster=vendor")


@pytest.fixture
def images():
    return LabelledImages("some", ["a", "b", "c"], [0, 1, 0], lambda index: None, "content", clusters=["x", "x", ""])


def test_a_subset_keeps_clusters_and_they_are_part_of_a_runs_data(images):
    assert images.subset([2, 0]).clusters == ["", "x"]
    plain = replace(images, clusters=None)
    assert plain.subset([1]).clusters is None
    assert _images_hash(images, ["u", "v"]) != _images_hash(plain, ["u", "v"])


def test_a_record_keeps_clusters_and_its_intervals_are_over_them(tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    rows = {row: np.where(rng.random(60) < rate, labels, 0) for row, rate in zip(ROWS, (0.4, 0.5, 0.7, 0.8), strict=True)}
    clusters = [f"c{i // 4}" for i in range(60)]
    predictions = Predictions([f"{i:02d}" for i in range(60)], labels, rows, [""] * 60, cluster=clusters)
    predictions.write(tmp_path / "predictions.parquet")
    assert Predictions.read(tmp_path / "predictions.parquet").cluster == clusters
    ranks = {row: (predicted != labels).astype(int) for row, predicted in rows.items()}
    found = row_metrics(replace(predictions, ranks=ranks), dict.fromkeys(rows, 5))["final"]
    expected = compare(predictions.correct(), predictions.correct("global"), clusters=clusters)
    assert (found["low"], found["high"], found["p_value"], found["clusters"]) == (expected.low, expected.high, expected.p_value, 15)
    replace(predictions, cluster=()).write(tmp_path / "predictions.parquet")
    assert Predictions.read(tmp_path / "predictions.parquet").cluster == [""] * 60
