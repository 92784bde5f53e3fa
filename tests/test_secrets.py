"""The value of a secret environment variable in an override stands in no file and no log, also of a job that fails or is killed."""

import logging
import os
import shlex
import signal
import sys
import time

import forked
import pytest
import yaml
from conftest import CONF, composed
from refusals import refused

from multicrop.files import redacted
from multicrop.runs.secrets import RedactingFormatter, hide_secrets, redact_error
from multicrop.show import wandb_logger as loggers

PRIVATE = "sk-very'secret-token-1234"
SMALL = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1", "examples=2"]
SMALL += ["crop=random_k1", "task=zero_shot", "aggregator=max", "trainer.progress=false", "trainer.threads=1", "pictures=0"]


def environment(tmp_path):
    own = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return own | {"HOME": str(tmp_path), "HUB_TOKEN": PRIVATE, "WANDB_MODE": "offline", "WANDB_DATA_DIR": str(tmp_path / "staging")}


def command(tmp_path, *words):
    return [*words, *SMALL, f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]


def files_with(tmp_path, text):
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [path for path in files if text.encode() in path.read_bytes() or text in path.name]


QUOTED = PRIVATE.replace("'", "\\'")


def test_a_sweep_with_a_failing_job_leaves_the_secret_nowhere(tmp_path):
    words = ["-m", f"+note='{QUOTED}'", f"prompt.file=null,'{QUOTED}'"]
    done = forked.run(command(tmp_path, *words), env=environment(tmp_path))
    assert done.returncode == 1 and "<HUB_TOKEN>" in done.stdout
    assert "very" not in done.stdout + done.stderr
    assert files_with(tmp_path, "very'secret") == files_with(tmp_path, "very\\'secret") == files_with(tmp_path, "very''secret") == []
    (folder,) = (tmp_path / "runs").glob("sweep-*")
    assert "<HUB_TOKEN>" in (folder / "1" / "failed.json").read_text()
    assert "+note='${oc.env:HUB_TOKEN}'" in yaml.safe_load((folder / "0" / ".hydra" / "overrides.yaml").read_text())
    assert yaml.safe_load((folder / "0" / "config.yaml").read_text())["note"] == "<HUB_TOKEN>"
    assert list(folder.rglob("*.wandb")) and list(folder.rglob("*.log"))


def test_the_error_of_a_run_does_not_hold_the_secret(tmp_path):
    done = forked.run(command(tmp_path, f"prompt.file='{QUOTED}'", "hydra.verbose=true"), env=environment(tmp_path))
    assert done.returncode == 2 and "the description file <HUB_TOKEN> does not exist" in done.stderr
    assert "very" not in done.stdout + done.stderr and files_with(tmp_path, "very") == []


def test_an_error_before_the_run_does_not_hold_the_secret(tmp_path):
    done = forked.run(command(tmp_path, f"on_unreadable='{QUOTED}'"), env=environment(tmp_path))
    assert done.returncode == 2 and "on_unreadable is one of skip, raise; got '<HUB_TOKEN>'" in done.stderr
    assert "very" not in done.stdout + done.stderr


def test_a_killed_run_leaves_the_secret_nowhere(tmp_path):
    process = forked.start(command(tmp_path, f"+note='{QUOTED}'"), env=environment(tmp_path))
    deadline = time.monotonic() + 200
    while not list((tmp_path / "runs").rglob("overrides.yaml")) and time.monotonic() < deadline and not process.ended():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    assert list((tmp_path / "runs").rglob("overrides.yaml")) and files_with(tmp_path, "very") == []


@pytest.mark.parametrize(
    ("secret", "word", "expected"),
    [
        ("abc-12345678", "+note=abc-12345678", "abc-12345678"),
        ("abc-12345678", '+note="before abc-12345678 after"', "before abc-12345678 after"),
        ("abc-12345678", "+note=[x,abc-12345678]", ["x", "abc-12345678"]),
        ("abc=+/12345678", "+note='abc=+/12345678'", "abc=+/12345678"),
        ("abc(12,345)678", r"+note=abc\(12\,345\)678", "abc(12,345)678"),
        ("12345678", "+note=12345678", "12345678"),
    ],
)
def test_the_run_has_the_value_that_was_passed(secret, word, expected, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", secret)
    (hidden,) = hide_secrets([word])
    assert secret not in hidden and composed(hidden).note == expected


def test_flags_options_of_groups_and_short_values_stay(monkeypatch):
    monkeypatch.setenv("MODEL_KEY", "clip_vit_b16")
    monkeypatch.setenv("SHORT_KEY", "zero")
    words = ["-m", "model=clip_vit_b16", "task=zero_shot", "--config-dir=clip_vit_b16"]
    assert hide_secrets(words, groups=["model", "task"]) == words


def test_one_value_within_another_is_replaced_whole(monkeypatch):
    monkeypatch.setenv("A_KEY", "abcdefgh")
    monkeypatch.setenv("B_KEY", "abcdefgh-and-more")
    assert hide_secrets(["+x=abcdefgh-and-more"]) == ["+x=${oc.env:B_KEY}"]
    assert redacted({"x": ["abcdefgh-and-more", 3]}) == {"x": ["<B_KEY>", 3]}


@pytest.mark.parametrize("name", ["+api_key", "++model.hub_token", "+my.Password"])
def test_a_new_knob_named_like_a_secret_wants_a_variable(name):
    with refused(name, "environment variable", "${oc.env:"):
        hide_secrets([f"{name}=abc123def456"])
    for allowed in (f"{name}=${{oc.env:X}}", f"{name}=short", "dataset.label_key=abc123def456", "+note=abc123def456"):
        assert hide_secrets([allowed]) == [allowed]


def test_run_py_refuses_without_printing_the_value(tmp_path):
    done = forked.run(command(tmp_path, "+api_key=abc123def456"), env=environment(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("error: +api_key=...") and "abc123def456" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_texts_of_errors_and_log_records_are_redacted(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", PRIVATE)
    try:
        try:
            raise OSError(2, "no", f"/data/{PRIVATE}/x")
        except OSError as error:
            raise ValueError(f"cannot read {PRIVATE!r}") from error
    except ValueError as error:
        redact_error(error)
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed with %s", (PRIVATE,), sys.exc_info())
        said = RedactingFormatter("%(message)s").format(record)
    assert "very" not in said and said.count("<SOME_API_KEY>") == 3 and "Traceback" in said


def test_names_and_tags_that_wandb_gets_are_redacted(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_API_KEY", PRIVATE)
    monkeypatch.setenv("WANDB_MODE", "offline")
    knobs = {"project": None, "entity": None, "choices": {}, "folder": str(tmp_path), "job_type": "tta"}
    logger = loggers.wandb_logger(group=f"g {PRIVATE}", tags=[PRIVATE], name=PRIVATE, **knobs)
    run = logger.experiment
    assert (run.group, run.tags, run.name) == ("g <SOME_API_KEY>", ("<SOME_API_KEY>",), "<SOME_API_KEY>")
    loggers.finish(logger)
    assert files_with(tmp_path, "very") == []


def test_the_command_that_goes_on_is_one_that_runs(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", PRIVATE)
    hidden = hide_secrets([f"+note='{QUOTED}'"])
    assert shlex.split(redacted(shlex.join(hidden))) == hidden and composed(*hidden).note == PRIVATE


def test_hydras_logs_are_written_by_the_redacting_formatter():
    hydra = yaml.safe_load((CONF / "hydra" / "default.yaml").read_text())
    for logs in ("job_logging", "hydra_logging"):
        assert hydra[logs]["formatters"]["simple"]["class"].endswith(RedactingFormatter.__name__)
