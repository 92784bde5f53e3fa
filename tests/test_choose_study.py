"""The study of the choice: streams have names, the gate's threshold separates harm from help, tables and oracle count as they should."""

import sys

import numpy as np
import pytest
from conftest import ROOT

from multicrop.compare.run import read_run
from multicrop.record import ROWS, Predictions, write_record
from multicrop.runs.choose_scores import Scored
from multicrop.runs.choose_settings import GLOBAL, Crops, Setting

sys.path.insert(0, str(ROOT))
from experiments.choose import gate, oracle, tables

ESTIMATE = {"value": 0.05, "low": 0.01, "high": 0.09}
CHOICE = {"setting": "16 crops", "chosen_on": "validation images", "images": 160, "gain": ESTIMATE, "corrected": ESTIMATE}
CHOICE |= {"optimism": ESTIMATE, "highest": {"setting": "x", "accuracy": 0.99}}


def stream(name, gap, helps, images=40):
    """Two classes; the global view is right on half of the images, the crops on all (helps) or on none."""
    label = np.zeros(images, dtype=int)
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    whole = np.stack([right if i % 2 else wrong for i in range(images)])
    local = np.tile(right if helps else wrong, (images, 1))
    return gate.Stream(name, whole, local, np.full(images, gap), label, [""] * images)


def test_the_threshold_lies_between_streams_that_crops_help_and_harm():
    streams = [stream("scenes, validation, none", 0.2, True), stream("emoji, validation, shot_noise 3", 0.8, False)]
    (threshold, width), of_stream = gate.chosen(streams)
    assert 0.2 < threshold < 0.8 and width in gate.WIDTHS and 0.2 <= of_stream < 0.8
    for one, accuracy in zip(streams, (1.0, 0.5), strict=True):
        assert one.per_image(threshold, width).mean() == one.per_stream(of_stream).mean() == accuracy
    rows = {line[4]: line for line in gate.lines_of(streams[1], (threshold, width), of_stream)}
    assert rows["dnd fused 0.75"][6] == "-50.00" and rows["gated per image"][6] == rows["gated per stream"][6] == "0.00"


def test_measured_streams_are_read_as_they_were_written(tmp_path):
    one = stream("scenes, validation, none", 0.2, True)
    values = {"whole": one.whole, "local": one.local, "gap": one.gap, "label": one.label, "cluster": np.asarray(one.cluster)}
    np.savez(tmp_path / "a.npz", **values, name=one.name)
    (read,) = gate.read(tmp_path)
    assert read.name == one.name and read.cluster == one.cluster and np.array_equal(read.whole, one.whole)


@pytest.mark.parametrize(
    ("dataset", "config", "name"),
    [
        ("scenes-noto-v1", {"dataset": {"vendor": "noto-v1"}, "corruption": {"_target_": "x"}}, "scenes, noto-v1, clean"),
        ("emoji-fog-5", {"dataset": {"vendors": ["a", "b"]}, "corruption": {"kind": "fog", "severity": 5}}, "emoji, a+b, fog 5"),
        ("flowers102", {"dataset": {}}, "flowers102, clean"),
    ],
)
def test_a_stream_is_named_by_data_vendors_and_corruption(dataset, config, name):
    assert tables.stream_of(dataset, config) == name


def test_a_line_says_what_was_expected_and_what_the_test_images_say(tmp_path):
    ids, label = [f"{i}" for i in range(10)], np.zeros(10, dtype=int)
    rows = {row: np.array([0] * 4 + [1] * 6) for row in ROWS} | {"final": np.array([0] * 7 + [1] * 3)}
    write_record(
        tmp_path,
        config={"dataset": {"vendor": "v"}, "task": {"name": "choose", "like_test": False}},
        metrics={"rows": {row: {"accuracy": 0.5} for row in ROWS}, "choice": CHOICE},
        predictions=Predictions(ids, label, rows, [""] * 10),
        environment={},
        data={"dataset": "scenes-v"},
    )
    line = dict(zip(tables.HEADER, tables.line_of(read_run(tmp_path)), strict=True))
    assert (line["stream"], line["chosen_on"], line["labelled"]) == ("scenes, v, clean", "validation (clean)", 160)
    assert (line["gain"], line["highest"], line["expected"]) == ("5.00", "99.00", "5.00")
    assert (line["global"], line["top1"], line["difference"], line["clusters"]) == ("40.00", "70.00", "30.00", "")


def test_the_oracle_reads_labels_and_the_criteria_do_not():
    settings = [Setting(Crops(), GLOBAL, (), 1.0), *(Setting(Crops((0.2, 0.5), 4), "max", (), weight) for weight in (0.5, 1.0))]
    predictions = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    known = {
        "probability": np.zeros((3, 4)),
        "information": np.array([0.1, 0.9, 0.2]),
        "consistency": np.array([1.0, 0.9, 0.8]),
        "gap": np.array([0.0, 0.9, 0.9]),
    }
    scored = Scored(settings, predictions, **known, labels=np.zeros(4, dtype=int), clusters=[], left_out=[])
    lines = {line[1]: line for line in oracle.lines_of("s", scored, 0.5)}
    assert lines["test labels (oracle)"][2] == str(settings[2]) and lines["test labels (oracle)"][5] == "100.00"
    assert lines["mutual_information"][2] == str(settings[1]) and lines["gate"][2] == str(settings[0]) and lines["gate"][6] == "0.00"
