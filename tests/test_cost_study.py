"""The study of cost: thresholds come from validation images, costs are counted as they are paid, the front holds what nothing beats."""

import csv
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, composed
from PIL import Image

sys.path.insert(0, str(ROOT))
from experiments.cost import cost, exact, streams
from experiments.cost.streams import Look, Measured, Plan

from multicrop.data.base import LabelledImages
from multicrop.data.images import reduced_decoding

PLAN = Plan((0, 1), 4, (("scenes", "noto-v1"),), ("random", "diverse"), (48,))
SURE = np.linspace(0.05, 0.95, 40)


def measured(right, share=1.0, sure=SURE):
    """As many rows as `right`: which of 40 images are right with 0, 1, 2 and 4 crops."""
    return Measured(np.stack([np.asarray(row, bool) for row in right]), sure, np.array([""] * len(sure)), share)


def helped():
    """Crops mend the half of the images of which the global view is least sure, and change nothing else."""
    whole, crops = SURE > 0.5, np.ones(40, bool)
    return measured([whole, whole, crops, crops])


def test_the_chosen_threshold_spends_crops_where_they_help_and_nowhere_else():
    limits = cost.thresholds([helped()], 3)
    correct, share = cost.cascade(helped(), limits["chosen"], 3)
    assert correct.all() and share == 0.5
    assert [cost.cascade(helped(), limits[name], 3)[1] for name in ("25 %", "50 %", "75 %")] == pytest.approx([0.25, 0.5, 0.75])


def test_no_crops_are_chosen_where_they_help_nobody():
    whole = SURE > 0.5
    limits = cost.thresholds([measured([whole] * 4)], 3)
    assert cost.cascade(measured([whole] * 4), limits["chosen"], 3)[1] == 0


def test_the_threshold_is_that_of_validation_and_the_accuracy_that_of_test():
    test = measured([SURE < 0, SURE < 0, SURE < 0.2, SURE < 0.2])
    rows = {(row.way, row.crops): row for row in cost.cascades("scenes", "noto-v1", [test, test], [helped(), helped()], PLAN.counts)}
    row = rows["cascade, chosen", 4]
    assert (row.calls, row.cost) == (3.0, 3.0) and row.top1 == pytest.approx((SURE < 0.2).mean())
    assert row.over_chance == pytest.approx(0.5 * (SURE < 0.2).mean())  # a random half would have mended half of them
    assert {crops for _, crops in rows} == {2, 4}


def test_crops_at_a_smaller_side_cost_their_share():
    vision = {"patch_size": 16, "image_size": 96, "hidden_size": 192, "intermediate_size": 768}
    share = streams.forward_share(vision, 48)
    assert share == pytest.approx(10 / 37, rel=0.03) and share < 10 / 37  # tokens, and attention that falls with their square
    assert streams.forward_share(vision, None) == streams.forward_share(vision, 96) == 1
    rows = cost.fixed("scenes", "noto-v1", Look("random", 48), [measured([SURE > 0] * 4, share)], PLAN.counts)
    assert [(row.crops, row.calls) for row in rows] == [(1, 2), (2, 3), (4, 5)] and rows[2].cost == 1 + 4 * share
    assert [row.way for row in cost.fixed("scenes", "v", Look("random"), [helped()], [1])] == ["global view", "random"]


def row(way, crops, spent, right):
    return cost.Row("scenes", "noto-v1", way, crops, spent, spent, np.asarray([right, right], bool))


def test_the_front_and_the_crops_that_are_needed():
    half, more, less = SURE > 0.5, SURE > 0.3, SURE > 0.6
    rows = [row("global view", 0, 1, less), row("random", 4, 5, half), row("random", 8, 9, half), row("diverse", 2, 3, half)]
    rows += [row("diverse", 1, 2, less), row("quasi_random", 4, 5, more)]
    assert cost.front(rows) == {0, 3, 5}
    base = cost.baseline_of(rows)
    assert (base.way, base.crops) == ("random", 8)
    clusters = np.array([""] * 40)
    lines = cost.needed(rows, clusters, ("random", "diverse", "quasi_random"))
    assert [line[2:4] for line in lines] == [["random", 4], ["diverse", 2], ["quasi_random", 4]]
    assert [line[4:6] for line in lines] == [[4, 4], [2, 2], [4, 4]]  # equal on every image, or better on some and worse on none
    assert cost.gain(rows[4], base, clusters).difference == pytest.approx(less.mean() - half.mean())


def test_the_interval_of_the_fewest_crops_says_where_they_do_not_suffice():
    """Two crops lack three of the forty images that four have: 4.4 % of the resamples hold none of these and find two as good."""
    few, all_right = SURE < 0.9, SURE >= 0
    rows = [row("random", 2, 3, few), row("random", 4, 5, all_right)]
    assert cost.fewest_crops(rows, rows[1], np.array([""] * 40)) == (2, 4)
    assert cost.fewest_crops(rows[:1], rows[1], np.array(["a", "b"] * 20)) == (np.inf, np.inf)


def test_tables_and_picture_are_written_from_measurements(tmp_path, capsys):
    for seed in PLAN.seeds:
        for look in PLAN.looks:
            for split in ("test", "validation"):
                one = replace(helped(), share=0.3 if look.side else 1.0)
                path = streams.file_of(tmp_path, "scenes", "noto-v1", split, look, seed)
                np.savez(path, correct=one.correct, sure=one.sure, clusters=one.clusters, share=one.share)
    streams.file_of(tmp_path, "scenes", "noto-v1", "validation", Look("random"), 1).unlink()
    plan = replace(PLAN, streams=(*PLAN.streams, ("emoji", "noto-v1")))  # a seed that is not whole, and a stream that is not there
    cost.write(plan, tmp_path, tmp_path)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["data"] for row in rows} == {"scenes"} and {row["seeds"] for row in rows} == {"1"}
    chosen = next(row for row in rows if row["way"] == "cascade, chosen" and row["crops"] == "4")
    assert (chosen["calls"], chosen["top1"], chosen["difference"], chosen["over_chance"]) == ("3.00", "100.00", "0.00", "25.00")
    assert next(row for row in rows if row["way"] == "random, 48 px" and row["crops"] == "2")["cost"] == "1.60"
    assert (tmp_path / "cost.png").stat().st_size > 5000 and "random,2," in (tmp_path / "needed.csv").read_text()
    assert "| global view | 1.0 | -50.0 [" in capsys.readouterr().out


@pytest.mark.parametrize(("data", "vendor"), Plan().streams)
def test_every_measurement_of_the_plan_composes(data, vendor):
    own = [f"dataset={data}", streams.VENDORS[data].format(vendor), streams.LEFT_OUT, "aggregator=dnd_fused", "split=validation"]
    for look in Plan().looks:
        cfg = composed(*own, f"crop={look.policy}", "crop.n_crops=16", *([] if look.side is None else [f"model.crop_side={look.side}"]))
        assert cfg.crop.n_crops == 16 and cfg.dataset.leave_out == "noto"


class TestOptionsThatShouldChangeNoAnswer:
    def test_enlarged_images_are_jpeg_files_of_the_same_pictures(self):
        small = Image.radial_gradient("L").convert("RGB").resize((30, 20))
        large = exact.enlarged(LabelledImages("drawings", ["a", "b"], [0, 0], lambda index: small, "content").subset([1]))
        assert large.open(0).size == (2880, exact.SIDE) and large.fingerprint != "content" and large.parent is None  # has other pixels
        with reduced_decoding(480):
            assert large.open(0).size == (720, 480)
        assert np.abs(np.asarray(large.open(0).resize((30, 20), Image.Resampling.BOX), float) - np.asarray(small)).mean() < 2

    def test_the_line_of_a_stream(self):
        """One of 40 answers changes with each seed: to the right one with the first, from a wrong class to another with the second."""
        labels = np.zeros(40, int)
        wrong, other, right = [1] + [0] * 39, [2] + [0] * 39, [0] * 40
        answers = [np.array([wrong, right]), np.array([wrong, other])]
        files = np.array(["a", "b"] * 20), np.array(0.98), np.array([2.0, 1.0]), np.array([1, 2])
        line = exact.line_of("o", "scenes", "v", 16, [exact.Pair(both, labels, *files) for both in answers])
        cells = dict(zip(exact.HEADER, line, strict=True))
        assert (cells["seeds"], cells["images"], cells["clusters"], cells["decoded"]) == (2, 40, 2, "1/1 1/2")
        assert (cells["stay"], cells["cosine"], cells["processor_time"]) == ("97.50", "0.9800", "0.50")
        assert (cells["plain"], cells["top1"], cells["difference"]) == ("97.50", "98.75", "1.25")

    def test_a_small_part_is_measured_once_with_and_without_each_option(self, tmp_path, monkeypatch):
        pytest.importorskip("openvino")
        plan, seen, measure = replace(PLAN, seeds=(0,), overrides=("limit=6",)), [], exact.measure

        def seeing(plain, other, images):
            seen.append([(one.settings.part("model").values["precision"], one.settings.compute.cut) for one in (plain, other)])
            return measure(plain, other, images)

        monkeypatch.setattr(exact, "measure", seeing)
        for _ in range(2):
            list(exact.measure_all(plan, tmp_path, small=True))
        assert seen == [[("fp32", "worker"), ("openvino_fp32", "worker")], [("fp32", "worker"), ("fp32", "scaled")]]
        lines = [dict(zip(exact.HEADER, line, strict=True)) for line in exact.lines_of(plan, tmp_path)]
        assert [(line["option"], line["images"], line["decoded"]) for line in lines] == [
            (exact.OPTIONS[0], 6, "1/1"),
            (exact.SCALED, 6, "1/2"),
        ]
        assert float(lines[0]["cosine"]) > 0.9999 > float(lines[1]["cosine"]) > 0.9  # features in half precision; boxes on a coarser grid
        assert lines[0]["stay"] == "100.00" and "| 6 | 1/1 | 100.00 % |" in exact.table([list(line.values()) for line in lines])
