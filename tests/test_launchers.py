"""Launchers: the jobs of a sweep in processes of their own share banks, divide threads, and are counted like those of one process."""

import json
import os
import pickle

import forked
import pytest
import yaml
from conftest import composed
from hydra.types import RunMode
from omegaconf import OmegaConf
from refusals import refused
from rich.live import Live
from slurm import CannotRunError, cluster
from written import shards_written, watched

from multicrop import config
from multicrop.config import job as config_job
from multicrop.runs import sweep

DATA = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1", "trainer.shard_images=4"]
RUN = ["task=zero_shot", "crop=random_k4", "aggregator=max", "examples=0", "logger=none"]
SHARDS = 3  # of 4 * 3 test images, 4 a shard


def multirun(tmp_path, *arguments, **variables):
    """A sweep of the tiny data: exit status, output, its folder, and (process, shard) of each shard that any process wrote."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "OMP_", "MKL_"))}
    env = kept | watched(tmp_path) | {"COLUMNS": "200", "RAY_worker_niceness": "0"} | variables  # Ray's 15 waits for all other tests
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    done = forked.run(["-m", *arguments, *RUN, *DATA, *paths], env=env)
    (folder,) = (tmp_path / "runs").glob("sweep-*")
    written = shards_written(tmp_path)  # by Pythons that were started, unlike the forked process of the sweep: each job ran in one of them
    assert len(written) == len({shard for _, shard in written}) == SHARDS, written
    return done.returncode, done.stdout + done.stderr, folder


def threads(folder):
    return {json.loads(path.read_text())["threads"] for path in folder.glob("*/environment.json")}


HALF = max(1, (os.cpu_count() or 1) // 2)
LAUNCHERS = {  # knobs, jobs that end well, threads of each; a process per job of submitit is dear
    "joblib": (["hydra.launcher.n_jobs=2"], ["[]", "[topk]"], HALF),
    "submitit_local": ([], ["[]"], 1),
    "ray": (["hydra.launcher.init.num_cpus=2"], ["[]", "[topk]"], 1),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_jobs_side_by_side_fill_one_bank_divide_the_threads_and_count_failures(tmp_path, launcher):
    if launcher == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed: pip install -c constraints.txt -e '.[ray]'")
    knobs, good, expected = LAUNCHERS[launcher]
    status, said, folder = multirun(tmp_path, f"hydra/launcher={launcher}", *knobs, f"task.beside=[nope],{','.join(good)}")
    assert status == 1, said
    jobs = 1 + len(good)
    state = sweep.scan(folder, jobs)
    assert (state.done, list(state.failed), state.running) == (len(good), ["0: task.beside=[nope]"], ())
    assert f"sweep: {len(good)} of {jobs} done, 1 failed" in said and "failed: 0: task.beside=[nope]: ValueError" in said
    assert threads(folder) == {expected}
    assert "Scoring" not in said  # no bars of jobs among the lines of the sweep


def test_slurm_runs_the_jobs_of_a_sweep(tmp_path):
    try:
        with cluster() as variables:
            knobs = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
            status, said, folder = multirun(tmp_path, *knobs, "task.fusion_weight=1.0,0.5", **variables)
    except CannotRunError as reason:
        pytest.skip(str(reason))
    assert status == 0, said
    assert sweep.scan(folder, 2).done == 2 and "sweep: 2 of 2 done" in said and threads(folder) == {1}
    assert len(list((folder / ".submitit").rglob("*_result.pkl"))) == 2


def test_a_study_goes_on_after_a_trial_that_fails(tmp_path):
    pytest.importorskip("optuna", reason="the extra optuna is not installed")
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    knobs = ["sweep=optuna", "hydra.sweeper.n_trials=3", "aggregator.view_marginal=choice(uniform,similarity)"]
    knobs += [
        "dataset.facts.crop_side=[0.35,0.63]",
        "aggregator.view_set=all",
        "task.fusion_weight=1.0",
        "crop=random_k4",
        "examples=0",
        "logger=none",
    ]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"COLUMNS": "200"}
    done = forked.run(["-m", *knobs, *DATA, "trainer.threads=1", *paths], env=env)
    (folder,) = (tmp_path / "runs").glob("sweep-*")
    state = sweep.scan(folder, 3)
    assert done.returncode == 1 and state.done and len(state.failed) == 3 - state.done > 0, done.stdout + done.stderr
    found = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    epsilon = found["best_params"]["aggregator.epsilon"]
    assert found["best_params"] == {"aggregator.epsilon": epsilon, "aggregator.view_marginal": "uniform"}
    assert found["best_value"] == state.best[0]


def hydra_of(monkeypatch, mode=RunMode.MULTIRUN, sweeper=None, name="plugin", **launcher):
    """What HydraConfig holds in a job whose launcher has this name."""
    runtime = {"choices": {"hydra/launcher": name}, "output_dir": "outputs"}
    node = {"mode": mode, "launcher": launcher, "sweeper": sweeper or {}, "runtime": runtime}
    monkeypatch.setattr(config_job.HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(config_job.HydraConfig, "get", staticmethod(lambda: OmegaConf.create(node)))


@pytest.mark.parametrize(
    ("launcher", "available", "expected"),
    [
        ({}, 16, 16),
        ({"n_jobs": 4}, 16, 4),
        ({"n_jobs": 4}, 4, 4),  # divided already, by joblib or by the job before in this process
        ({"n_jobs": 4}, 2, 2),
        ({"n_jobs": -1}, 16, 1),
        ({"n_jobs": -9}, 16, 2),
        ({"n_jobs": 40}, 16, 1),
        ({"cpus_per_task": 6}, 16, 6),
        ({"cpus_per_task": None}, 16, 1),
    ],
)
def test_a_job_takes_its_share_of_the_threads_once(monkeypatch, launcher, available, expected):
    monkeypatch.setattr(config_job.os, "cpu_count", lambda: 16)
    hydra_of(monkeypatch, **launcher)
    assert config.threads_of_job(available) == expected
    hydra_of(monkeypatch, mode=RunMode.RUN, **launcher)
    assert config.threads_of_job(available) == available


def test_jobs_run_in_parallel_under_every_launcher_but_the_basic_one(monkeypatch):
    hydra_of(monkeypatch)
    assert config.in_parallel()
    hydra_of(monkeypatch, name="basic")
    assert not config.in_parallel()
    hydra_of(monkeypatch, mode=RunMode.RUN)
    assert not config.in_parallel()


def test_the_live_view_stays_in_the_process_that_shows_it():
    view = sweep.SweepView(live=True)
    view.view = Live("here")
    sent = pickle.loads(pickle.dumps(view))  # noqa: S301 - what a parallel launcher does with the callbacks
    assert sent.view is None and sent.wanted and view.view is not None


def test_a_failure_is_raised_to_a_sweeper_that_counts_them(monkeypatch, tmp_path):
    from multicrop.runs import experiment

    def broken(cfg, cache=None):
        raise RuntimeError("no")

    monkeypatch.setattr(experiment, "run", broken)
    monkeypatch.setattr(sweep, "in_sweep", lambda: True)
    hydra_of(monkeypatch, sweeper={"max_failure_rate": 1.0})
    known = config_job.HydraConfig.get()
    known.runtime.output_dir, known.job = str(tmp_path), {"num": 0}
    monkeypatch.setattr(config_job.HydraConfig, "get", staticmethod(lambda: known))
    with pytest.raises(RuntimeError, match=r"^no$"):
        sweep.job(OmegaConf.create({"trainer": {"progress": True}}))
    assert "RuntimeError: no" in (tmp_path / "failed.json").read_text()


def test_several_devices_are_refused_in_a_sweep_with_the_way_to_do_it(monkeypatch, tmp_path):
    from multicrop.runs import experiment

    cfg = composed("task=encode", "trainer.devices=2", f"paths.cache={tmp_path}")
    hydra_of(monkeypatch, name="basic")
    with refused("Leave -m out", "hydra/launcher=submitit_slurm task=encode seed=1,2,3,4"):
        experiment.run(cfg)
