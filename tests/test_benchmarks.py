"""`make bench`: its parts are found by name, its tables fit 80 columns, its rows are kept part by part, and it runs every aggregator."""

import importlib
import json
import sys
import time
from functools import partial

import forked
import pytest
import torch
from conftest import ROOT

from multicrop.text import TextBank

sys.path.insert(0, str(ROOT / "benchmarks"))
bench, timing = importlib.import_module("run"), importlib.import_module("timing")
NAMES = sorted(path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))


def test_the_short_parts_of_all_benchmarks_run_where_none_is_named_and_every_part_by_name():
    short, whole = bench.chosen([]), bench.chosen(NAMES)
    assert list(whole) == NAMES and set(short) <= set(NAMES)
    for name, parts in whole.items():
        module = importlib.import_module(f"bench_{name}")
        assert parts == list(module.PARTS)
        assert short.get(name, []) == [part for part in parts if part not in getattr(module, "LONG", ())]
    assert "ten_million" in whole["scale"] and "ten_million" not in short.get("scale", [])


def test_a_benchmark_and_a_part_are_chosen_by_name():
    assert bench.chosen(["bank.embedded", "methods"]) == {"bank": ["embedded"], "methods": ["methods"]}


@pytest.mark.parametrize("word", ["nope", "bank.nope"])
def test_an_unknown_name_lists_what_there_is(word):
    with pytest.raises(ValueError, match=r"there are .*bank"):
        bench.chosen([word])


def test_rows_replace_those_of_the_same_part_alone(tmp_path):
    file, row = tmp_path / "bank.json", timing.Row("a / b", 2.0, 1.5, 2.5)
    bench.keep(file, "first", "title", [row], 1.0)
    bench.keep(file, "second", "title", [row], 1.0)
    bench.keep(file, "first", "title", [timing.Row("a / b", 3.0, 3.0, 3.0)], 7.4)
    parts = json.loads(file.read_text())["parts"]
    assert [parts[name]["rows"][0]["ratio"] for name in ("first", "second")] == [3.0, 2.0]
    assert [parts[name]["seconds"] for name in ("first", "second")] == [7, 1]


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


def test_the_clock_of_the_processor_does_not_count_what_waits(monkeypatch):
    assert {"wall": time.perf_counter, "processor": time.process_time} == timing.CLOCKS
    shown = {"wall": 0.0, "processor": 0.0}
    monkeypatch.setattr(timing, "CLOCKS", {name: partial(shown.get, name) for name in shown})
    ways = {"waits": lambda: shown.update(wall=shown["wall"] + 0.5)}
    assert timing.in_turn(ways, rounds=1, warm_up=0)["waits"].median == 0.5
    monkeypatch.setattr(timing, "clock", "processor")
    assert timing.in_turn(ways, rounds=1, warm_up=0)["waits"].median == 0 and bench.machine()["clock"] == "processor"


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


def test_the_benchmark_of_a_gpu_runs_and_measures_nothing_without_one(monkeypatch):
    """The same code on the CPU in its place, with the embedded model."""
    gpu, bank = importlib.import_module("bench_gpu"), importlib.import_module("bench_bank")
    files = bank.photographs(2, 120, 90)
    rows = gpu.encode(bank.tiny, files, ("fp32",), device="cpu", workers=0) + gpu.decode(files, device="cpu", workers=0)
    assert [row.mark for row in rows] == [0.9, 1.0, None] and all(0 < row.low <= row.ratio <= row.high for row in rows)
    assert "crops per second" in rows[0].note and "fp32: trainer.cut=worker / device" in rows[1].name
    monkeypatch.setattr(gpu, "GPU", False)
    assert [part() for part in gpu.PARTS.values()] == [[], [], []]


def test_the_whole_last_layer_of_the_benchmark_is_the_librarys():
    """What `make bench BENCH=towers` compares with: every token of the last layer, the same features."""
    towers, tiny = importlib.import_module("bench_towers"), importlib.import_module("bench_bank").tiny("fp32")
    whole, seen = towers.whole_last_layer(tiny), []
    tiny.model.vision_model.encoder.layers[-1].mlp.register_forward_hook(lambda _, args, output: seen.append(args[0].shape[1]))
    pixels = towers.pixels_of(2, tiny.spec.side)
    with torch.inference_mode():
        torch.testing.assert_close(whole.encode_images(pixels), tiny.encode_images(pixels), atol=2e-7, rtol=0)
    assert seen == [37, 4] and towers.precisions()[0] == "fp32"
