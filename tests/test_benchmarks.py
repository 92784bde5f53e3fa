"""`make bench`: its parts are found by name, its tables fit 80 columns, its rows are kept part by part, and it runs every aggregator."""

import importlib
import json
import sys

import forked
import pytest
import torch
from conftest import ROOT

from multicrop.text import TextBank

sys.path.insert(0, str(ROOT / "benchmarks"))
bench, timing = importlib.import_module("run"), importlib.import_module("timing")
NAMES = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))


def test_all_benchmarks_run_where_none_is_named():
    assert list(bench.chosen([])) == NAMES
    assert all(bench.chosen([]).values())


def test_a_benchmark_and_a_part_are_chosen_by_name():
    assert bench.chosen(["bank.embedded", "methods"]) == {"bank": ["embedded"], "methods": ["methods"]}


@pytest.mark.parametrize("word", ["nope", "bank.nope"])
def test_an_unknown_name_lists_what_there_is(word):
    with pytest.raises(ValueError, match=r"there are .*bank"):
        bench.chosen([word])


def test_rows_replace_those_of_the_same_part_alone(tmp_path):
    file, row = tmp_path / "bank.json", timing.Row("a / b", 2.0, 1.5, 2.5)
    bench.keep(file, "first", "title", [row])
    bench.keep(file, "second", "title", [row])
    bench.keep(file, "first", "title", [timing.Row("a / b", 3.0, 3.0, 3.0)])
    parts = json.loads(file.read_text())["parts"]
    assert [parts[name]["rows"][0]["ratio"] for name in ("first", "second")] == [3.0, 2.0]


def test_a_table_fits_80_columns_with_each_number_on_one_line(capsys):
    rows = [
        timing.Row(
            "a long name of what was measured against what, K=16 C=1000 M=8 " * 2, 41.213, 39.581, 44.0, mark=30, note="a note " * 30
        )
    ]
    timing.show("title " * 20, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("41.21" in line and "39.58-44.00" in line and ">= 30" in line and "reached" in line for line in lines)


def test_every_aggregator_of_the_benchmark_gives_logits():
    generator = torch.Generator().manual_seed(0)
    views, text = (torch.nn.functional.normalize(torch.randn(*shape, 8, generator=generator), dim=-1) for shape in ((2, 5), (3, 4)))
    bank = TextBank(text, torch.ones(3, 4, dtype=torch.bool), [["x"] * 4] * 3)
    made = importlib.import_module("bench_aggregators").options()
    assert sorted(made) == sorted(path.stem for path in (ROOT / "conf" / "aggregator").glob("*.yaml"))
    for name, aggregate in made.items():
        assert aggregate(views, bank, 100.0).shape == (2, 3), name


def test_the_stub_of_the_memory_benchmark_fills_a_bank():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import bench_bank as bank\n"
    done = forked.run([], code=code + "bank.fill(bank.STUB, bank.labelled(bank.photographs(1) * 2, 'bench'))")
    assert done.returncode == 0, done.stderr


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path, monkeypatch, capsys):
    module = importlib.import_module("bench_methods")
    monkeypatch.setattr(module, "PARTS", {"bad": lambda: 1 / 0, "good": lambda: [timing.Row("a / b", 1.0, 1.0, 1.0)]})
    monkeypatch.setattr(sys, "argv", ["run.py", "methods", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"failed: methods\.bad"):
        bench.main()
    assert "ZeroDivisionError" in capsys.readouterr().err and list(json.loads((tmp_path / "methods.json").read_text())["parts"]) == ["good"]
