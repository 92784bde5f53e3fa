"""Sweeps: what jobs share, what is counted, what a failure or a kill leaves, and the state that the live view shows."""

import inspect
import json
import math
import os
import re
import signal
import time
from types import SimpleNamespace

import forked
import pytest
import records
import torch
import yaml
from conftest import CONF, EXPECTED, composed, options
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from refusals import refused

from hydra_plugins.multicrop_loader import KnobLoader
from hydra_plugins.multicrop_sweeper import KnobSweeper, UnfinishedLauncher
from multicrop.aggregators.logits_cache import CachedScorer, LogitsCache
from multicrop.aggregators.score import Scorer, with_text
from multicrop.config import check_overrides, register_resolvers
from multicrop.files import Identity, write_manifest
from multicrop.record import write_pointer
from multicrop.runs import finished_runs, sweep
from multicrop.runs.session import Session
from multicrop.runs.settings import settings_of
from multicrop.runs.sweep_cache import MOST, SweepCache
from multicrop.text import TextBank

SMALL = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1", "examples=2"]
COUNTING = """
import json, runpy, sys
import multicrop.data.embedded.scenes as scenes, multicrop.encoder as encoder, multicrop.encoder.loading as loading
counts = dict.fromkeys(("models", "data", "views", "texts"), 0)
def counted(place, name, key, how_many=lambda *a: 1):
    made = getattr(place, name)
    def call(*args, **kwargs):
        counts[key] += how_many(*args)
        return made(*args, **kwargs)
    setattr(place, name, call)
counted(loading, "load_encoder", "models")
counted(scenes, "scenes", "data")
counted(encoder.Encoder, "encode_images", "views", lambda self, pixels: pixels[..., 0, 0, 0].numel())
counted(encoder.Encoder, "encode_texts", "texts")
sys.argv = ["run.py", *sys.argv[1:]]
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    print("COUNTS", json.dumps(counts))
"""


def command(tmp_path, *arguments):
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    return ["-m", *arguments, *SMALL, "logger=none", "trainer.progress=false", "trainer.threads=1", *paths]


def environment(tmp_path, **more):
    return {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path), "COLUMNS": "200"} | more


def folders(tmp_path):
    return sorted((tmp_path / "runs").glob("sweep-*"))


def test_four_jobs_load_one_model_and_encode_each_view_and_text_once(tmp_path):
    grid = command(tmp_path, "task=zero_shot", "crop=random_k4", "aggregator=dnd,max", "task.fusion_weight=0.5,1.0")
    done = forked.run(grid, env=environment(tmp_path), code=COUNTING)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.split("COUNTS ")[1])
    assert counts == {"models": 1, "data": 1, "texts": 1, "views": 4 * 3 * 5}
    (folder,) = folders(tmp_path)
    assert sweep.scan(folder, 4).done == 4 and "sweep: 4 of 4 done" in done.stdout
    assert not list(folder.rglob("explanations.png")) and len(list(folder.rglob("examples.json"))) == 4


def test_a_killed_sweep_continues_and_a_failed_job_is_told_at_the_end(tmp_path):
    key = "sk-very-secret-token-1234"
    grid = command(tmp_path, "task=zero_shot", "crop=random_k4", "aggregator=max", "task.beside=[],[topk],[nope],[dnd]")
    env = environment(tmp_path, HUB_TOKEN=key)
    process = forked.start(grid, env=env)
    deadline = time.monotonic() + 400
    while not list((tmp_path / "runs").glob(".by_config/*.json")) and time.monotonic() < deadline and not process.ended():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    killed = sweep.scan(folders(tmp_path)[0], 4)
    done = forked.run([*grid, f"paths.data={key}"], env=env)
    assert done.returncode == 1
    assert killed.done >= 1 and done.stdout.count("already done, skipped") == killed.done
    assert "failed: 2: task.beside=[nope]: ValueError: task.beside names the aggregator nope" in done.stdout
    folder = folders(tmp_path)[-1]
    state = sweep.scan(folder, 4)
    assert (state.done, len(state.failed), state.running) == (3, 1, ())
    assert ((folder / "0" / "record.json").is_file() and (folder / "3" / "metrics.json").is_file()) or killed.done > 1
    assert "Traceback" in (folder / "2" / "failed.json").read_text()
    written = [folder / "3" / name for name in ("config.yaml", "environment.json", "data.json", "metrics.json")]
    assert not any(key in path.read_text() for path in [*written, folder / "2" / "failed.json"] if path.is_file())


def place(folder, number, words, **files):
    """The folder of a job, as Hydra and the job leave it."""
    job = folder / str(number)
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    for name, text in files.items():
        (job / f"{name}.json").write_text(text)
    return job


@pytest.mark.parametrize("content", [b"", b"- a\n- 'b", b"\xff", b"{a: 1}", b"3"])
def test_overrides_that_cannot_be_read_name_nothing(content, tmp_path):
    place(tmp_path, 0, ["task=tta", "aggregator=max"], failed='{"error": "no"}')
    damaged = place(tmp_path, 1, [], failed='{"error": "no"}')
    (damaged / ".hydra" / "overrides.yaml").write_bytes(content)
    assert sweep.scan(tmp_path, 2).failed == {"0: task=tta aggregator=max": "no", "1: ": "no"}


def test_the_state_is_read_from_what_the_jobs_leave(tmp_path):
    assert sweep.scan(tmp_path, 7) == sweep.State(7, 0, (), {}, None)
    score = '{{"format": 4, "rows": {{"final": {{"accuracy": {}}}}}}}'.format
    write_manifest(place(tmp_path, 0, ["task=tta", "aggregator=max", "paths.output=x"], metrics=score(0.5)), ["metrics.json"])
    write_manifest(place(tmp_path, 1, ["task=tta", "aggregator=dnd", "paths.output=x"], metrics=score(0.75)), ["metrics.json"])
    place(tmp_path, 2, ["task=tta", "aggregator=wca", "paths.output=x"], failed='{"error": "ValueError: no"}')
    place(tmp_path, 10, ["task=tta", "aggregator=abs", "paths.output=x"])
    place(tmp_path, 4, ["task=tta", "aggregator=mta", "paths.output=x"])
    write_pointer(tmp_path / "4", tmp_path / "1")
    place(tmp_path, 5, ["task=tta", "aggregator=awt", "paths.output=x"], metrics='{"rows": {"fi', manifest="{}")
    place(tmp_path, 6, ["task=tta", "aggregator=vote", "paths.output=x"], metrics='{"format": 4, "rows": {"final": {"accuracy": 0.9}}}')
    state = sweep.scan(tmp_path, 12)
    assert state == sweep.State(12, 4, ("6", "10"), {"2: aggregator=wca": "ValueError: no"}, (0.75, "1: aggregator=dnd"))
    line = state.line(50)
    for said in ("4 of 12 done", "running 6, 10", "1 failed", "best 75.0 % (1: aggregator=dnd)", "about 1:10 left", "0:50 so far"):
        assert said in line
    ended = state.line(50, ended=True)
    assert "unfinished 6, 10" in ended and ended.endswith("aggregator=dnd), in 0:50")
    assert "left" not in sweep.State(None, 4, (), {}, None).line(50) and "left" not in sweep.State(4, 4, (), {}, None).line(50)
    assert sweep.clock(3723.4) == "1:02:03"


def test_jobs_are_counted_as_the_basic_sweeper_makes_them():
    assert sweep.count_jobs(["task=a,b", "crop=x", "n=range(0,5)"], {"k": "1,2,3", "fixed": 4}) == 30
    assert sweep.count_jobs([], {}) == 1
    assert sweep.count_jobs(["n=interval(0,1)"], {}) is None


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in ("sweep", "protocol") for name in options(group)])
def test_a_named_sweep_says_its_command_and_every_value_of_it_exists(group, name):
    text = (CONF / group / f"{name}.yaml").read_text()
    assert f"python run.py -m {group}={name}" in text and text.startswith("# @package _global_")
    assert EXPECTED.search(text) and re.search(r"^# Time: .*(second|minute)", text, re.M)
    sweeper = yaml.safe_load(text)["hydra"]["sweeper"]
    swept = {key: value if re.search(r"[,(]", str(value)) else f"choice({value})" for key, value in sweeper["params"].items()}
    check_overrides(
        ["-m", f"{group}={name}", *(f"{key}={value}" for key, value in swept.items())], CONF
    )  # the sweeper sets one value per job as well
    jobs = sweeper.get("n_trials") or sweep.count_jobs([], sweeper["params"])
    assert f"{jobs} runs" in text, jobs


def fake(monkeypatch, tmp_path=None, *, multirun=True, chosen=None):
    """A job of a sweep, without Hydra."""
    monkeypatch.setattr(sweep, "in_sweep", lambda: multirun)
    monkeypatch.setattr(sweep, "choices", lambda: chosen or {})
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path)), job=SimpleNamespace(num=3))
    monkeypatch.setattr(sweep.HydraConfig, "get", staticmethod(lambda: hydra))


def test_a_failure_is_kept_in_a_sweep_raised_in_a_single_run_and_gone_when_the_job_succeeds(monkeypatch, tmp_path, capsys):
    from omegaconf import OmegaConf

    from multicrop.runs import experiment

    def broken(cfg, cache=None):
        raise RuntimeError("the disk of user sk-very-secret is full")

    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret")
    monkeypatch.setattr(experiment, "run", broken)
    fake(monkeypatch, tmp_path)
    assert math.isnan(sweep.job(OmegaConf.create()))
    left = json.loads((tmp_path / "failed.json").read_text())
    assert left["error"] == "RuntimeError: the disk of user <SOME_API_KEY> is full" and "sk-very-secret" not in json.dumps(left)
    monkeypatch.setattr(experiment, "run", lambda cfg, cache=None: 0.5)
    assert sweep.job(OmegaConf.create()) == 0.5 and not (tmp_path / "failed.json").exists()
    monkeypatch.setattr(experiment, "run", broken)
    fake(monkeypatch, tmp_path, multirun=False)
    with pytest.raises(SystemExit) as ended:
        sweep.job(OmegaConf.create())
    assert ended.value.code == 1 and "RuntimeError: the disk of user <SOME_API_KEY> is full" in capsys.readouterr().err
    fake(monkeypatch, tmp_path, multirun=False, chosen={"sweep": "shots"})
    with refused("sweep=shots", "-m"):
        sweep.job(OmegaConf.create())


def test_parts_are_made_once_for_equal_values_and_the_oldest_is_released():
    cache = SweepCache()
    one = cache.get("x", [1], object)
    assert cache.get("x", [1], object) is one and cache.get("x", [2], object) is not one and cache.get("y", [1], object) is not one
    for other in range(MOST):
        cache.get("x", [10 + other], object)
    assert cache.get("x", [1], object) is not one
    one = cache.get("y", [1], object)
    cache.clear()
    assert cache.get("y", [1], object) is not one


def test_a_loop_of_the_users_own_shares_what_it_is_given(tmp_path):
    words = ["crop=random_k1", "dataset.n_classes=4", "dataset.test_images=3", "examples=0", "pictures=0", "trainer.progress=false"]
    words += [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/out"]
    cache = SweepCache()
    one, two = (Session(settings_of(composed(*words, f"task.fusion_weight={weight}")), cache) for weight in (0.5, 1.0))
    assert one.encoder is two.encoder and one.text is two.text and one.dataset.test is two.dataset.test
    alone = Session(settings_of(composed(*words)))
    assert alone.encoder is not one.encoder


def test_what_was_made_with_a_model_is_made_anew_with_another_or_a_changed_one():
    cache, model = SweepCache(), torch.nn.Linear(2, 2)
    text = cache.get("text", ["t"], object, of=model)
    assert cache.get("text", ["t"], object, of=model) is text
    with torch.no_grad():
        model.weight.data[0, 0] += 1  # in place, past autograd's counter
    changed = cache.get("text", ["t"], object, of=model)
    assert changed is not text and cache.get("text", ["t"], object, of=model) is changed
    assert cache.get("text", ["t"], object, of=torch.nn.Linear(2, 2)) is not changed


class Counted:
    """The mean of the views against the label prompts, and how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, views, text, logit_scale):
        self.calls += 1
        time.sleep(0.01)
        return logit_scale * views.mean(1) @ text.label.T


def test_a_later_job_reads_the_logits_of_an_earlier_one_to_the_last_bit():
    text, other = (TextBank(torch.randn(3, 1, 4), torch.ones(3, 1, dtype=torch.bool), [["a"], ["b"], ["c"]]) for _ in range(2))
    views, cache, aggregator = torch.randn(5, 2, 4), LogitsCache(), Counted()
    one, two = (CachedScorer(text, 100.0, aggregator, weight, cache=cache) for weight in (1.0, 0.5))
    plain = Scorer(text, 100.0, Counted(), 0.5)
    with torch.no_grad():
        first, second = one(views), two(views)
        assert aggregator.calls == 1 and torch.equal(second, plain(views)) and torch.equal(first, plain.local_logits(views))
        assert one.spared == 0 and two.spared >= 0.01
        first.zero_()  # what a job does to its logits is nothing to the next one
        assert torch.equal(two(views), second) and aggregator.calls == 1
        two(views + 1)
        assert aggregator.calls == 2
        changed = with_text(two, other)
        assert torch.equal(changed(views), with_text(plain, other)(views)) and aggregator.calls == 3
        cache.max_bytes = 0
        assert torch.equal(two(views + 2), two(views + 2)) and aggregator.calls == 5
    two(views)
    assert aggregator.calls == 6  # a gradient is wanted
    with torch.inference_mode():
        two(views)
    assert aggregator.calls == 7 and len(cache) == 2


JOBS = [
    ["task=zero_shot", "crop=random_k4", "aggregator=dnd", "task.fusion_weight=0.5", "seed=2"],
    ["task=zero_shot", "crop=random_k4", "aggregator=dnd", "task.fusion_weight=0.25", "seed=3"],
    ["task.shots=2", "task=few_shot", "crop.n_crops=3", "dataset.facts.crop_side=[0.2,0.4]"],
    ["experiment=zero_shot/dclip", "dataset=imagenet", "model=clip_vit_b32", "prompt.max_descriptions=2"],
    ["aggregator=max", "+trainer.extra=1"],
]


SIGNATURES = {  # what the loader and the sweeper override or call of Hydra's internals
    BasicSweeper.__init__: ["self", "max_batch_size", "params"],
    BasicSweeper.setup: ["self", "hydra_context", "task_function", "config"],
    BasicSweeper.validate_batch_is_legal: ["self", "batch"],
    ConfigLoaderImpl.__init__: ["self", "config_search_path"],
    ConfigRepository.__init__: ["self", "config_search_path"],
    ConfigRepository.load_config: ["self", "config_path"],
    ConfigLoaderImpl.load_sweep_config: ["self", "master_config", "sweep_overrides"],
    ConfigLoaderImpl._apply_overrides_to_config: ["overrides", "cfg"],
    get_overrides_dirname: ["overrides", "exclude_keys", "item_sep", "kv_sep"],
}


def test_a_configuration_without_hydras_part_is_that_of_the_job(tmp_path):
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = KnobLoader(GlobalHydra.instance().config_loader().config_search_path)
        master = loader.load_configuration("config", ["logger=none", f"paths.output={tmp_path}"], RunMode.MULTIRUN)
        for job in [*JOBS[:3], JOBS[1], ["aggregator=max", "aggregator.view_set=all"]]:
            whole = loader.load_sweep_config(master, job)
            expected = OmegaConf.to_container(OmegaConf.masked_copy(whole, our_parts(whole)), resolve=True)
            plain, choices = loader.without_hydra(master, job)
            assert OmegaConf.to_container(plain, resolve=True) == expected
            assert choices == {k: v for k, v in whole.hydra.runtime.choices.items() if not k.startswith("hydra")}
        for own in (["hydra.job.chdir=false", "aggregator=max"], ["aggregator=max", "paths.data=${hydra:job.num}"]):
            assert loader.without_hydra(master, own) is None


def our_parts(cfg):
    return [name for name in cfg if name not in ("hydra", "logger")]


class Started:
    """A launcher that writes down what it is to start."""

    def __init__(self):
        self.chunks = []

    def launch(self, job_overrides, initial_job_idx):
        self.chunks.append((initial_job_idx, [*job_overrides]))
        return [f"ran {initial_job_idx + i}" for i in range(len(job_overrides))]


@pytest.mark.parametrize("finished", [set(), {0, 1, 2, 3, 4}, {0}, {4}, {1, 2}, {0, 2, 4}])
def test_jobs_that_are_not_finished_are_started_with_their_own_numbers(finished, monkeypatch):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "x", "subdir": "1"}, "output_subdir": ".hydra"}})
    started = Started()
    launcher = UnfinishedLauncher(started, None, config)
    monkeypatch.setattr(launcher, "_record", lambda overrides, number: number if number - 7 in finished else None)
    monkeypatch.setattr(launcher, "_skip", lambda overrides, number, record: f"skipped {record}")
    jobs = [[f"a={number}"] for number in range(5)]
    assert launcher.launch(jobs, 7) == [f"{'skipped' if number in finished else 'ran'} {7 + number}" for number in range(5)]
    assert {first + i: words for first, chunk in started.chunks for i, words in enumerate(chunk)} == {
        7 + number: job for number, job in enumerate(jobs) if number not in finished
    }


def test_a_repeated_sweep_starts_what_is_not_finished_and_points_to_the_rest(tmp_path):
    def swept(name, *more):
        words = ["task=zero_shot", "crop=random_k1", "aggregator=max", "task.fusion_weight=1.0,0.75,0.5", *more]
        return forked.run(command(tmp_path, *words, f"hydra.sweep.dir={tmp_path}/runs/sweep-{name}"), env=environment(tmp_path))

    first = swept("x")
    assert first.returncode == 0, first.stdout + first.stderr
    one, two = (tmp_path / "runs" / f"sweep-{name}" for name in "xy")
    entry = min((tmp_path / "runs" / ".by_config").glob("*.json"))
    lost = json.loads(entry.read_text())["record"].split("/")[-1]
    entry.unlink()
    second = swept("y")
    assert second.returncode == 0 and second.stdout.count("already done, skipped") == 2
    assert sorted(path.name for path in two.iterdir()) == ["0", "1", "2", "multirun.yaml"]
    ran = {path.name for path in two.iterdir() if (path / "metrics.json").is_file()}
    pointed = {path.name for path in two.iterdir() if (path / "record.json").is_file()}
    assert ran == {lost} and pointed == set("012") - ran
    for name in "012":
        overrides = [yaml.safe_load((place / name / ".hydra" / "overrides.yaml").read_text()) for place in (one, two)]
        assert overrides[0] == overrides[1] and "aggregator=max" in overrides[0]
    assert sweep.scan(one, 3) == sweep.scan(two, 3)
    again = swept("y", "rerun=true")
    assert again.returncode == 0 and "already done" not in again.stdout and not list(two.rglob("record.json"))


def test_hydra_has_the_internals_that_the_sweeper_needs():
    for function, names in SIGNATURES.items():
        assert list(inspect.signature(function).parameters) == names, function


def test_the_configured_sweeper_is_ours_with_the_knobs_of_hydras():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ours, hydras, optuna = (
            compose("config", overrides=words, return_hydra_config=True).hydra.sweeper
            for words in ([], ["hydra/sweeper=basic"], ["sweep=optuna"])
        )
    assert ours._target_ == f"{KnobSweeper.__module__}.{KnobSweeper.__name__}" and "n_trials" in optuna
    assert hydras._target_ == f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
    assert {**ours, "_target_": None} == {**hydras, "_target_": None}


def test_a_sweeps_loader_composes_what_hydras_does(monkeypatch):
    register_resolvers()
    composed = []
    whole = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", lambda self, *args: composed.append(args) or whole(self, *args))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        search = GlobalHydra.instance().config_loader().config_search_path
        hydras, ours = ConfigLoaderImpl(search), KnobLoader(search)
        master = hydras.load_configuration("config", ["logger=none"], RunMode.MULTIRUN)
        for job in [*JOBS, JOBS[0]]:
            expected, got = whole(hydras, master, job), ours.load_sweep_config(master, job)
            assert OmegaConf.to_container(got) == OmegaConf.to_container(expected)
            assert OmegaConf.is_struct(got) and list(got.hydra.overrides.task) == job
        assert len(composed) == 4
        with pytest.raises(HydraException, match="fusion_wight"):
            ours.load_sweep_config(master, [*JOBS[0], "task.fusion_wight=1"])


def test_a_model_that_a_job_has_changed_is_made_anew():
    cache = SweepCache()
    make = lambda: torch.nn.Linear(2, 2)  # noqa: E731
    made = cache.get("model", ["m"], make)
    assert cache.get("model", ["m"], make) is made
    for change in (
        lambda m: torch.nn.init.zeros_(m.weight),
        lambda m: setattr(m, "more", torch.nn.Linear(1, 1)),
        lambda m: m.requires_grad_(False),
        lambda m: setattr(m, "weight", torch.nn.Parameter(torch.ones(2, 2))),
    ):
        change(made)
        fresh = cache.get("model", ["m"], make)
        assert fresh is not made
        made = fresh


def test_the_index_survives_a_torn_entry_and_a_move(tmp_path):
    parts = {"data": "d", "code": "c"}
    records.write(tmp_path / "out" / "run", parts=parts)
    find, key = finished_runs.find, Identity(parts).key
    finished_runs.enter(tmp_path / "out", key, tmp_path / "out" / "run")
    assert find(tmp_path / "out", key).folder == tmp_path / "out" / "run"
    (tmp_path / "out").rename(tmp_path / "moved")
    assert find(tmp_path / "moved", key).folder == tmp_path / "moved" / "run"
    (tmp_path / "moved" / "run" / "metrics.json").write_text('{"ro')
    assert find(tmp_path / "moved", key) is None
    (tmp_path / "moved" / ".by_config" / f"{key}.json").write_text('{"rec')
    assert find(tmp_path / "moved", key) is None and find(tmp_path / "moved", "other") is None
