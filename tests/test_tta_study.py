"""The study of test-time adaptation: tables pair records by image, count orders and correct by stream; its sweeps hold every method."""

import sys

import numpy as np
import pytest
from conftest import CONF, ROOT
from hydra import compose, initialize_config_dir

from multicrop.compare.statistics import holm
from multicrop.config import register_resolvers
from multicrop.record import ROWS, Predictions, write_record

sys.path.insert(0, str(ROOT))
from experiments.tta import records as tta_records
from experiments.tta import tables as tta


def record(folder, *, method, right, bare, seed=1, setting="dnd", dataset="scenes", kind=None, views=17):
    """A finished run whose images, label 0, come in the order of `right` and `bare`: image id to right or wrong."""
    ids = list(right)
    corruption = {"kind": kind, "severity": 3} if kind else {}
    rows = {row: np.zeros(len(ids), dtype=int) for row in ROWS}
    rows |= {"final": np.array([1 - right[i] for i in ids]), "aggregated": np.array([1 - bare[i] for i in ids])}
    test = {f"test/{row}{measure}": 0.1 for row in ("", "aggregated/") for measure in ("ece", "brier")}
    stream = {"encoder_calls_per_image": views, "state_bytes": 2048, "ms_per_image": dict.fromkeys(ROWS, 1.0)}
    stream |= {tenth: dict.fromkeys(ROWS, 0.5) for tenth in ("first_tenth", "last_tenth")}
    folder.mkdir(parents=True)
    write_record(
        folder,
        config={
            "corruption": corruption,
            "dataset": {"vendor": "noto-v1"},
            "task": {"name": "tta", "order": "shuffled", "order_seed": seed},
        },
        metrics={"rows": {row: {"accuracy": 0.5} for row in ROWS}, "views_per_image": views, "test": test, "stream": stream},
        predictions=Predictions(ids, np.zeros(len(ids), dtype=int), rows, [""] * len(ids)),
        environment={"choices": {"dataset": dataset, "experiment": f"tta/{setting}", "method": method}},
        data={"dataset": dataset},
    )


def images(values):
    return dict(zip("abcdefghijkl", values, strict=False))


def test_a_stream_is_paired_by_image_and_its_orders_are_counted(tmp_path):
    bare, right = images([0, 0, 1, 1]), images([1, 0, 1, 1])
    record(tmp_path / "1", method="tda", right=right, bare=bare, seed=1)
    record(tmp_path / "2", method="tda", right=dict(reversed(right.items())), bare=bare, seed=2)
    record(tmp_path / "3", method="none", right=bare, bare=bare)
    record(tmp_path / "4", method="tda", right=bare, bare=bare, views=5)  # not in the tables
    (row,) = tta.rows_of(tta_records.read(tmp_path))
    assert row.gain.difference == pytest.approx(1 / 4) and row.gain.rescued == 1 and row.gain.lost == 0
    line = dict(zip(tta.HEADER, row.line(), strict=True))
    assert (line["seeds"], line["images"], line["bare"], line["top1"], line["state_bytes"]) == (2, 4, "50.00", "75.00", 2048)


def test_the_newest_of_a_seed_counts_and_other_images_are_refused(tmp_path):
    bare = images([0, 0, 1, 1])
    record(tmp_path / "1", method="tda", right=bare, bare=bare)
    record(tmp_path / "2", method="tda", right=images([1, 1, 1, 1]), bare=bare)
    assert tta.rows_of(tta_records.read(tmp_path))[0].gain.difference == pytest.approx(1 / 2)
    record(tmp_path / "3", method="dmn", right={"other": 1}, bare={"other": 1})
    with pytest.raises(SystemExit, match="did not see the same images"):
        tta_records.read(tmp_path)
    with pytest.raises(SystemExit, match="no finished run below"):
        tta_records.read(tmp_path / "nothing")


def test_holm_corrects_within_a_stream_and_not_across(tmp_path):
    generator = np.random.default_rng(0)
    bare = images([0] * 12)
    for kind in (None, "fog"):
        for method in ("mta", "zero"):
            right = images([1] * 12 if method == "mta" else generator.integers(0, 2, 12).tolist())
            record(tmp_path / f"{kind}{method}", method=method, right=right, bare=bare, kind=kind)
    rows = tta.rows_of(tta_records.read(tmp_path))
    assert [row.cell.stream for row in rows] == ["scenes, middle"] * 2 + ["scenes, middle, fog 3"] * 2
    for stream in ("scenes, middle", "scenes, middle, fog 3"):
        family = [row for row in rows if row.cell.stream == stream]
        assert [row.p_holm for row in family] == holm([row.gain.p_value for row in family])
    assert rows[0].holds and "| mta | - | - | - | - | **+100.0** |" in tta.gains(rows)


def test_dnd_is_compared_inside_each_host_over_the_seeds_that_both_settings_have(tmp_path):
    """The global view of seed 3 has no partner, and a host without the global view is asked one question alone."""
    for seed in (1, 2, 3):
        right = images([1, 1, 0, 0] if seed < 3 else [1, 1, 1, 1])
        record(tmp_path / f"{seed}g", method="tda", right=right, bare=right, seed=seed, setting="global_view", views=1)
    for seed in (1, 2):
        for setting in ("dnd", "crops_mean"):
            right = images([1, 1, 1, 0] if setting == "dnd" else [0, 1, 0, 0])
            record(tmp_path / f"{seed}{setting}", method="tda", right=right, bare=right, seed=seed, setting=setting)
    record(tmp_path / "dmn", method="dmn", right=images([1, 0, 0, 0]), bare=right, setting="dnd")
    rows = tta.rows_inside(tta_records.read(tmp_path))
    assert [(row.cell.method, row.against, row.gain.difference) for row in rows] == [
        ("tda", "global_view", pytest.approx(1 / 4)),
        ("tda", "crops_mean", pytest.approx(2 / 4)),
    ]
    assert "| tda | - | - | - | - | +25.0 (0 better, 0 worse of 1) | +50.0 (0 better, 0 worse of 1) |" in tta.answer(rows)


def test_the_study_writes_its_tables_and_pictures(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for number, (dataset, method, seed) in enumerate((d, m, s) for d in ("scenes", "emoji") for m in ("tda", "dmn") for s in (1, 2)):
        right, bare = (images(generator.integers(0, 2, 12).tolist()) for _ in range(2))
        for setting, views in tta_records.VIEWS.items():
            folder = tmp_path / f"runs/{number}{setting}"
            record(folder, method=method, right=right, bare=bare, seed=seed, dataset=dataset, setting=setting, views=views)
    monkeypatch.setattr(sys, "argv", ["tta.py", str(tmp_path / "runs"), str(tmp_path)])
    tta.main()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 16
    assert len((tmp_path / "inside.csv").read_text().splitlines()) == 1 + 12
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in ("curves", "inside"))
    assert "| tda | 0.100 | 0.100 | 0.100 |" in capsys.readouterr().out


def test_the_sweeps_of_streams_hold_every_method_and_setting_of_the_study():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        params = [
            compose("config", overrides=[f"sweep={name}", "logger=none"], return_hydra_config=True).hydra.sweeper.params
            for name in ("streams", "streams_episodic")
        ]
    methods = [method for found in params for method in found.method.split(",")]
    assert {*methods} <= {path.stem for path in (CONF / "method").glob("*.yaml")}
    assert sorted(methods) == sorted([*tta_records.METHODS, "none"])
    assert all(found.experiment.split(",") == [f"tta/{name}" for name in tta_records.SETTINGS] for found in params)
