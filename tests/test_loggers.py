"""W&B: when it is online, offline or off, what a run logs, the dashboard, and that no key is written anywhere; the other loggers."""

import base64
import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import forked
import pytest
import records
import wandb
import yaml
from conftest import CONF, session_of
from PIL import Image
from refusals import refused

from multicrop import cli
from multicrop.config import check_overrides
from multicrop.files import redacted
from multicrop.record import FILES, read_record
from multicrop.runs import sweep
from multicrop.runs.environment import environment
from multicrop.runs.experiment import evaluate
from multicrop.runs.loggers import logger_of
from multicrop.show import wandb_logger as loggers

KEY = "f" * 40
CHOICES = {"task": "tta", "dataset": "scenes", "crop": "random_k4", "aggregator": "dnd", "method": "tda", "adapter": "ape", "model": "tiny"}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No key, no login, no mode."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def logger_in(folder, **knobs):
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"project": None, "entity": None, "group": None, "job_type": "tta", "choices": CHOICES, "tags": ["mine"], "name": None}
    return loggers.wandb_logger(**plain | knobs, folder=str(folder))


def test_offline_by_default_and_online_when_a_project_a_key_or_a_login_is_there(monkeypatch, nobody):
    assert loggers.wandb_mode(None) == "offline"
    assert loggers.wandb_mode("birds") == "online"
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "x" * 40)
        assert loggers.wandb_mode(None) == "online"
    (nobody / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (nobody / ".netrc").chmod(0o600)
    assert loggers.wandb_mode(None) == "online"


def test_a_run_starts_without_a_warning(tmp_path):
    """Lightning passes `anonymous` to W&B by default, which warns of it once per process: this is a process of its own."""
    knobs = "project=None, entity=None, group=None, job_type='tta', choices={}, tags=[], name=None"
    use = f"made = wandb_logger.wandb_logger({knobs}, folder='.'); made.experiment; wandb_logger.finish(made)"
    start = f"from multicrop.show import wandb_logger; {use}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}  # W&B's process of this one
    done = forked.run([], env=clean | {"WANDB_MODE": "offline"}, cwd=tmp_path, code=start)
    assert done.returncode == 0 and list(tmp_path.rglob("*.wandb")) and "WARNING" not in done.stdout + done.stderr
    assert "anonymous" not in done.stdout + done.stderr


def test_the_users_mode_wins(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.wandb_mode("birds") == "disabled"


def test_a_run_read_back_holds_its_metrics_panels_record_and_group_and_no_key(monkeypatch, tmp_path):
    """Two jobs of one process, offline, with a key in the environment; the first is read with W&B's own command."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    shown = [records.example("rescued"), records.example("lost", image_id="image-7")]
    monkeypatch.setattr(sys, "argv", ["run.py", f"note={KEY}"])
    facts = environment(seed=1, seconds=2.0)
    ids, made = [], []
    for job in ("one", "two"):
        record = records.write(tmp_path / "sweep-7" / job, examples=shown, facts=facts)
        monkeypatch.setattr(loggers, "in_sweep", lambda: True)
        logger = logger_in(record)
        made.append(logger.experiment)
        ids.append(logger.experiment.id)
        summary = {"test/accuracy": 0.75, "test/ece": 0.1, "encode_seconds": 3.0}
        classes = [{"class": "okapi", "images": 30, "accuracy": 0.9, "global": 0.6}]
        logger.log_hyperparams({"choices": CHOICES, "seed": 1})
        loggers.log_run(logger, summary=summary, classes=classes, examples=shown, record=record, picture=None)
        run = logger.experiment
        assert (run.group, run.job_type) == ("sweep-7", "tta") and set(run.tags) == {"scenes", "random_k4", "dnd", "tiny", "tda", "mine"}
        loggers.finish(logger)
    assert len(set(ids)) == 2
    (log,) = (tmp_path / "sweep-7" / "one").rglob("*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log)]
    read = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    said = json.dumps(read)
    assert read["config"]["choices"]["crop"] == "random_k4" and ids[0] in log.name
    for name in ("test/accuracy", "test/ece", "images/rescued", "images/lost", "classes"):
        assert name in said
    media = "".join(path.read_text() for path in log.parent.rglob("*.json"))
    assert "long legs 80%" in said + media
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert written and [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_the_values_of_secret_variables_are_left_out_and_others_kept(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_PASSWORD", "hunter2-hunter2")
    monkeypatch.setenv("SHORT_KEY", "a")
    monkeypatch.setenv("FLAVOUR", "vanilla-vanilla")
    said = redacted(f"a {KEY} hunter2-hunter2 vanilla-vanilla")
    assert said == "a <WANDB_API_KEY> <MY_PASSWORD> vanilla-vanilla"


def test_the_direction_of_each_metric_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    run = create_autospec(wandb.Run, instance=True)
    run.summary = {}
    record = records.write(tmp_path / "run", examples=[records.example()])
    numbers = dict.fromkeys(("test/accuracy", "test/ece", "test/vs_global/p_value", "test/vs_global/difference", "encode_seconds"), 0.5)
    loggers.describe(run, numbers)
    assert run.summary == numbers
    directions = {call.args[0]: call.kwargs["summary"] for call in run.define_metric.call_args_list}
    assert directions == {n: "max" if n in ("test/accuracy", "test/vs_global/difference") else "min" for n in numbers}
    artifact = loggers.record_artifact(record, "x")
    assert sorted(artifact.manifest.entries) == sorted(n for n in FILES if (record / n).is_file()) != []


def test_the_dashboard_is_written_as_json_without_a_login(tmp_path, capsys):
    """Fails if wandb-workspaces has no `_to_model`, which dashboard.save_json needs, or its JSON has another shape."""
    path = tmp_path / "dashboard.json"
    with pytest.raises(SystemExit) as done:
        cli.main(["dashboard", "--project", "birds", "--entity", "me", "-o", str(path)])
    assert done.value.code == 0, capsys.readouterr()
    made = json.loads(path.read_text())
    sections = made["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    shape = {s["name"]: [p["viewType"] for p in s["panels"]] for s in sections}
    shape = {name: panels for name, panels in shape.items() if panels}
    assert shape == json.loads((Path(__file__).parent / "dashboard_shape.json").read_text())
    assert json.dumps(made).count("images/rescued") >= 2 and made["report"]["project"]["name"] == "birds"


def test_the_wandb_sweep_runs_the_same_entry_with_knobs_that_exist():
    spec = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert (CONF.parent / spec["program"]).is_file() and spec["metric"] == {"name": "test/accuracy", "goal": "maximize"}
    sample = {k: v.get("value", (v.get("values") or [v.get("min")])[0]) for k, v in spec["parameters"].items()}
    check_overrides([f"{key}={value}" for key, value in sample.items()], CONF)
    assert sample["split"] == "validation" and spec["command"][1:] == ["python", "${program}", "${args_no_hyphens}"]
    assert sweep.count_jobs([f"crop={','.join(spec['parameters']['crop']['values'])}"], {}) == 2


def test_the_pictures_of_a_panel_have_one_size_and_their_boxes_stay_in_place(monkeypatch):
    monkeypatch.setattr(wandb, "Image", lambda picture, caption, boxes: (picture.size, boxes["crops"]["box_data"][0]["position"]))
    examples = []
    for size in ((40, 20), (10, 40)):
        stream = io.BytesIO()
        Image.new("RGB", size, "red").save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        examples.append(records.example() | {"boxes": [[0.0, 0.0, 1.0, 0.5]], "plan": [[0.9, 0.1]], "picture": picture})
    assert loggers.example_panels(examples) == {
        "images/rescued": [
            ((40, 40), {"minX": 0, "maxX": 1, "minY": 0, "maxY": 0.25}),
            ((40, 40), {"minX": 0, "maxX": 0.25, "minY": 0, "maxY": 0.5}),
        ]
    }


def numbers_in(name, folder):
    """What a logger wrote into the folder of a run: numbers, and the names of settings."""
    if name == "csv":
        *_, numbers = csv.DictReader((folder / "csv" / "metrics.csv").read_text().splitlines())
        return numbers, yaml.safe_load((folder / "csv" / "hparams.yaml").read_text())
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        settings = yaml.safe_load((folder / "tensorboard" / "hparams.yaml").read_text())
        return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}, settings
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("multicrop").experiment_id])
    assert run.info.status == "FINISHED"
    return run.data.metrics, {name.split("/")[0]: value for name, value in run.data.params.items()}


def run_with(logger, folder):
    """The settings of a small run with a logger of conf/, in this folder."""
    small = ["dataset.n_classes=4", "dataset.test_images=2", "dataset.train_images=2", "dataset.validation_images=1", "crop=random_k1"]
    settings = session_of(*small, f"paths.cache={folder}/banks", "pictures=0", "trainer.progress=false").settings
    values = yaml.safe_load((CONF / "logger" / f"{logger}.yaml").read_text())
    places = {"save_dir": str(folder), "tracking_uri": f"sqlite:///{folder}/mlflow.db"}
    values |= {name: place for name, place in places.items() if name in values}
    return replace(settings, config=settings.config | {"logger": values}, choices={"logger": logger}, output=folder, outputs=folder.parent)


@pytest.mark.parametrize("name", ["csv", "tensorboard", "mlflow"])
def test_lightnings_own_loggers_hold_the_numbers_of_the_record_and_its_settings(name, tmp_path):
    pytest.importorskip(name, reason=f"pip install 'multicrop[{name}]'")
    evaluate(run_with(name, tmp_path))
    numbers, settings = numbers_in(name, tmp_path)
    rows = read_record(tmp_path).metrics["rows"]
    assert float(numbers["test/accuracy"]) == pytest.approx(rows["final"]["accuracy"])
    assert float(numbers["test/vs_global/difference"]) == pytest.approx(rows["final"]["difference"]) and float(numbers["images"]) == 8
    assert {"crop", "seed", "choices"} <= set(settings)


def test_a_logger_of_a_run_that_fails_has_its_settings(tmp_path):
    with pytest.raises(RuntimeError, match="killed"), logger_of(run_with("csv", tmp_path)):
        raise RuntimeError("killed")
    assert yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())["crop"]["n_crops"] == 1


def test_a_logger_whose_package_is_missing_is_refused_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    with refused("logger=mlflow needs a package", "pip install 'multicrop[mlflow]'"), logger_of(run_with("mlflow", tmp_path)):
        pytest.fail("made")
