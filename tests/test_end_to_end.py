"""The real commands, in processes of their own, on the embedded default made small."""

import json
import os
import subprocess
import sys

import forked
import pyarrow.parquet as pq
import pytest

SMALL = ["dataset.n_classes=6", "dataset.test_images=4", "dataset.train_images=3", "dataset.validation_images=2", "pictures=2"]
ROWS = ("global", "crops_mean", "aggregated", "final")


def run(tmp_path, *arguments, check=True, **environment):
    """run.py with banks and records below tmp_path; no network is wanted, so W&B stays offline."""
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"COLUMNS": "110", "HOME": str(tmp_path)} | environment
    done = forked.run([*arguments, "trainer.progress=false", "trainer.threads=1", *paths], env=env)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def records(tmp_path):
    return sorted(path.parent for path in (tmp_path / "runs").rglob("metrics.json"))


def predictions(record):
    return pq.read_table(record / "predictions.parquet").to_pydict()


def test_the_main_job_writes_its_record_its_picture_and_an_offline_wandb_run(tmp_path):
    done = run(tmp_path, "task=tta", "crop=random_k4", *SMALL)
    (record,) = records(tmp_path)
    for said in ("global view", "4 crops averaged", "dnd + tda", "vs global [95 %]", "95 % interval over", "crops per second", str(record)):
        assert said in done.stdout
    metrics = json.loads((record / "metrics.json").read_text())
    table = predictions(record)
    assert metrics["images"] == len(table["label"]) == 24 and metrics["views_per_image"] == 5
    assert len(set(table["cluster"])) == metrics["rows"]["final"]["clusters"] > 1
    for row in ROWS:
        right = [p == label for p, label in zip(table[f"{row}_prediction"], table["label"], strict=True)]
        assert metrics["rows"][row]["accuracy"] == pytest.approx(sum(right) / 24)
    assert metrics["test"]["test/accuracy"] == pytest.approx(metrics["rows"]["final"]["accuracy"])
    assert (record / "explanations.png").stat().st_size > 10_000
    facts = json.loads((record / "environment.json").read_text())
    assert facts["versions"]["torch"] and facts["seconds"] > 0 and facts["peak_memory_bytes"] > 0
    assert "path:" in (record / "config.yaml").read_text() and "${" not in (record / "config.yaml").read_text()
    (log,) = record.rglob("*.wandb")
    wandb = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log)]
    read = subprocess.run(wandb, capture_output=True, text=True, check=True, timeout=120).stdout
    state = json.loads(read)
    assert state["config"]["choices"]["crop"] == "random_k4" and "test/accuracy" in json.dumps(state)


def test_a_sweep_runs_all_tasks_on_one_bank_and_skips_what_is_done(tmp_path):
    grid = ["-m", "task=zero_shot,few_shot,tta", "crop=global,random_k4", "dataset=scenes", "logger=none", "task.fusion_weight=0.9", *SMALL]
    first = run(tmp_path, *grid)
    assert len(records(tmp_path)) == 6
    assert first.stdout.count("bank filled") == 2 and first.stdout.count("bank reused") == 4
    accuracies = {json.loads((r / "metrics.json").read_text())["rows"]["global"]["accuracy"] for r in records(tmp_path)}
    assert len(accuracies) == 1
    second = run(tmp_path, *grid)
    assert second.stdout.count("already done") == 6 and len(records(tmp_path)) == 6
    selection = [json.loads((r / "metrics.json").read_text()).get("selection") for r in records(tmp_path)]
    assert sum(s is not None and s["how"] == "validation" and len(s["curve"]) > 1 for s in selection) == 2


def test_the_same_seed_gives_the_same_numbers_whatever_batch_and_workers(tmp_path):
    base = ["task=tta", "crop=random_k4", "logger=none", *SMALL]
    run(tmp_path / "a", *base)
    run(tmp_path / "b", *base, "trainer.batch_size=5", "trainer.num_workers=2")
    (one,), (two,) = records(tmp_path / "a"), records(tmp_path / "b")
    left, right = predictions(one), predictions(two)
    for name in ("image_id", "label", *(f"{row}_prediction" for row in ROWS)):
        assert left[name] == right[name]
    rows = [json.loads((record / "metrics.json").read_text())["rows"] for record in (one, two)]
    assert rows[0] == rows[1]
    shards = [sorted(path.read_bytes() for path in (tmp_path / x).rglob("shard-*.safetensors")) for x in "ab"]
    assert shards[0] == shards[1]


def test_emoji_and_ones_own_folder_run_too(tmp_path):
    run(tmp_path, "dataset=emoji", "dataset.group=food", "dataset.vendors=[noto-v1]", "crop=grid", "aggregator=max", "logger=none")
    from multicrop.data.embedded.emoji import emoji

    source = emoji(vendors=["fluent-3d"], group="animals", unseen=False)
    for index in range(12):
        name = source.class_names[source.test.labels[index % 3]].replace(" ", "_")
        folder = tmp_path / "own" / name
        folder.mkdir(parents=True, exist_ok=True)
        source.test.open(index % 3).rotate(index).save(folder / f"{index}.png")
    own = ["dataset=folder", f"dataset.root={tmp_path}/own", "prompt=template", "logger=none"]
    run(tmp_path, *own, "aggregator=mean_feature", "aggregator.text_set=label", "crop=random_k4")
    run(tmp_path, *own, "aggregator=global", "task=few_shot", "task.shots=1", "crop=global")
    assert len(records(tmp_path)) == 3
    for record in records(tmp_path):
        table, metrics = predictions(record), json.loads((record / "metrics.json").read_text())
        right = [p == label for p, label in zip(table["final_prediction"], table["label"], strict=True)]
        assert metrics["rows"]["final"]["accuracy"] == pytest.approx(sum(right) / len(right)) and len(right) == metrics["images"]
        assert sum(right) / len(right) > 2 / len(set(table["label"]))  # twice chance


def test_pretraining_runs_from_the_command_line_and_its_checkpoint_is_used(tmp_path):
    size = ["task.width=32", "task.layers=1", "task.text_width=32", "task.text_layers=1", "task.batch_size=4", "task.num_workers=0"]
    run(tmp_path, "task=pretrain", f"task.output={tmp_path}/tiny", "task.steps=2", "logger=none", *size)
    local = ["model=local", f"model.path={tmp_path}/tiny/checkpoint", 'model.facts.template="{}"']
    run(tmp_path, *local, "crop=global", "aggregator=global", "logger=none", *SMALL)
    assert len(records(tmp_path)) == 1
