"""The study of protocols: intervals of AUROC and FPR95 by hand and by definition, tables of shots and of unknown classes."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from test_studies import few_shot_cell

from multicrop.compare import trust
from multicrop.record import Detection

sys.path.insert(0, str(ROOT))
from experiments.protocols import tables, unknown
from experiments.protocols.detection import Draws


def test_a_resample_is_the_measure_of_the_images_that_it_draws():
    """Each resample repeats whole clusters; AUROC and FPR95 are those of the repeated images."""
    generator = np.random.default_rng(1)
    known, other = generator.normal(1, 1, 12).round(1), generator.normal(0, 1, 9).round(1)  # with ties
    draws = Draws(2, ["a", "a", "b", ""] * 3, [""] * 9, resamples=40)
    (rows, columns), (_, of_known, of_unknown) = draws.groups, draws.drawn
    assert rows.max() + 1 == 2 + 3 and columns.tolist() == list(range(9))
    for measure in ("auroc", "fpr95"):
        found = getattr(draws, measure)(known, other)
        assert found[0] == pytest.approx(getattr(trust, measure)(known, other)) and len(set(found.tolist())) > 5
        for value, a, b in zip(found, of_known, of_unknown, strict=True):
            repeated = np.repeat(known, a[rows]), np.repeat(other, b[columns])
            assert value == pytest.approx(getattr(trust, measure)(*repeated))
    mean = draws.over_seeds([np.zeros(41), np.ones(41)])
    assert mean[0] == 0.5 and set(mean.tolist()) == {0.0, 0.5, 1.0}
    estimate = draws.estimate(np.concatenate([[0.25], np.full(40, 0.25)]))
    assert (estimate.value, estimate.low, estimate.high, estimate.p_value) == (0.25, 0.25, 0.25, 2 / 41)


def run_of(seed, better, data="scenes", ood="new"):
    """A run with 8 known and 8 unknown images, whose last row tells all apart where `better`."""
    known = np.arange(16) < 8
    plain = np.tile([0.2, 0.8], 8) + 0.01 * seed
    values = {row: known.astype(float) if better and row == "final" else plain for row in unknown.ROWS}
    scores = {row: dict.fromkeys(unknown.SCORES, own) for row, own in values.items()}
    order = np.random.default_rng(seed).permutation(8)
    places = np.concatenate([order, 8 + order])
    kept = Detection(
        [f"i{i:02}" for i in places], [""] * 16, known, {r: {n: v[places] for n, v in own.items()} for r, own in scores.items()}
    )
    right = SimpleNamespace(rows=dict.fromkeys(unknown.ROWS, np.zeros(8)), accuracy=lambda row: 0.5)
    config = {"ood": ood, "crop_seed": seed, "dataset": {"vendor": "noto-v1"}}
    measures = {row: dict.fromkeys(list(unknown.TRUST)[1:], 0.25) for row in unknown.ROWS}
    return SimpleNamespace(config=config, choices={"dataset": data}, detection=kept, sorted_predictions=right, metrics={"trust": measures})


def test_unknown_classes_are_paired_by_image_over_seeds_and_corrected_over_streams(tmp_path, monkeypatch, capsys):
    runs = [run_of(seed, better, ood=ood) for seed in (0, 1) for better, ood in ((True, "new"), (False, "scenes"))]
    runs.append(SimpleNamespace(config={"ood": None}))
    monkeypatch.setattr(unknown, "read_runs", lambda folder: runs)
    monkeypatch.setattr(unknown, "OUTPUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["unknown.py", "folder"])
    unknown.main()
    lines = (tmp_path / "unknown.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(unknown.ROWS) * len(unknown.SCORES)
    fused = next(line for line in lines if line.startswith('"scenes, middle",second half of the classes,D&D fused,mcm,'))
    assert ",2,8,8,100.00,100.00,100.00,50.00," in fused and fused.count(",0.0004,0.0008") == 2  # Holm over two streams
    assert "| scenes, middle | D&D | 50.0 | 25.0 | 25.0 | 25.0 | 25.0 | 100.0 |" in capsys.readouterr().out
    assert (tmp_path / "unknown.png").stat().st_size > 10_000
    assert [unknown.kind_of(run_of(0, True, data, "emoji")) for data in ("scenes", "emoji")] == ["drawings", "unseen"]
    with pytest.raises(SystemExit, match="lacks unknown"):
        unknown.in_one_order(None)


def test_shots_are_compared_with_the_host_and_the_global_view_and_other_data_stay(tmp_path, monkeypatch, capsys):
    for number, (host, adapter, shots, seed) in enumerate(
        (h, a, k, s) for h in ("global", "dnd_fused") for a in ("good", "idle") for k in (1, 4) for s in (1, 2)
    ):
        right = [1, 1, 1, 1] if (host, adapter, shots) == ("dnd_fused", "good", 4) else [1, 1, 0, 0]
        few_shot_cell(tmp_path / f"runs/{number}", host, adapter, shots, seed, right)
    monkeypatch.setattr(tables, "OUTPUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "runs")])
    far = '"scenes, far",dnd,idle,4,1.00,0.00,2.00,3\n"scenes, far",dnd,none,0,1.00,0.00,2.00,1\n'
    (tmp_path / "shots.csv").write_text(f"data,host,adapter,shots,top1,low,high,seeds\n{far}")
    tables.main()
    shots, compared = ((tmp_path / name).read_text() for name in ("shots.csv", "shots_compared.csv"))
    assert '"scenes, middle",dnd_fused,good,4,100.00,' in shots and '"scenes, middle",global,none,0,50.00,' in shots
    assert shots.endswith(far) and len(shots.splitlines()) == 1 + 8 + 2 + 2
    assert '"scenes, middle",dnd_fused,good,4,the same on the global view,50.00,' in compared and ",global,good,4,the same" not in compared
    assert '"scenes, middle",dnd_fused,good,4,the host alone,50.00,' in compared and len(compared.splitlines()) == 1 + 8 + 5
    assert (tmp_path / "shots.png").stat().st_size > 10_000 and "| D&D fused | good | 50.0 | 100.0 |" in capsys.readouterr().out
