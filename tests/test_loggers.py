"""When W&B is online, offline or off, and that each job of a process is a run of its own."""

import pytest

from multicrop import loggers


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No key, no login, no mode."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_offline_by_default_and_online_when_a_project_a_key_or_a_login_is_there(monkeypatch, nobody):
    assert loggers.wandb_mode(None) == "offline"
    assert loggers.wandb_mode("birds") == "online"
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "x" * 40)
        assert loggers.wandb_mode(None) == "online"
    (nobody / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (nobody / ".netrc").chmod(0o600)
    assert loggers.wandb_mode(None) == "online"


def test_the_users_mode_wins(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.wandb_mode("birds") == "disabled"


def test_each_job_is_a_run_of_its_own_and_no_key_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for job in ("one", "two"):
        folder = tmp_path / job
        folder.mkdir()
        knobs = {"project": None, "entity": None, "group": "g", "job_type": "t", "tags": ["a"], "folder": str(folder), "name": None}
        logger = loggers.wandb_logger(**knobs)
        ids.append(logger.experiment.id)
        loggers.finish(logger)
        (log,) = folder.rglob("*.wandb")
        assert ids[-1] in log.name
    assert len(set(ids)) == 2
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(b"f" * 40 in path.read_bytes() for path in written)
