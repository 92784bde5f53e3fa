"""engine=ray: the bytes of a local fill on a cluster of several nodes, while the command and a node are killed; shards that fail."""

import os
import shutil
import signal
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import forked
import pytest
from conftest import ROOT, composed, pictures
from ray_actors import Scripted
from refusals import refused
from written import shards_written, watched

from multicrop import crops
from multicrop.features import feature_bank
from multicrop.features.fill_line import FillLine
from multicrop.features.ray_actor import Work
from multicrop.features.ray_engine import RayEngine, connected
from multicrop.features.ray_pool import BadShardError, ShardPool
from multicrop.features.shards import ShardFolder
from multicrop.runs import experiment

ray = pytest.importorskip("ray", reason="the extra ray is not installed: pip install -c constraints.txt -e '.[ray]'")
SHARDS = 60
DATA = ["dataset.n_classes=4", "dataset.test_images=15", "dataset.train_images=1", "dataset.validation_images=1", "trainer.shard_images=1"]
RUN = [*DATA, "crop=random_k4", "aggregator=max", "examples=0", "logger=none", "trainer.progress=false"]


@pytest.fixture(scope="module")
def cluster():
    """A head and two nodes of one processor each; their workers note which shards they write."""
    from ray.cluster_utils import Cluster

    place = Path(tempfile.mkdtemp(prefix="ray-"))  # short, for sockets; and no other test finds this cluster
    variables = watched(place, ROOT / "tests") | {"RAY_TMPDIR": str(place), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        patched.delenv("RAY_ADDRESS", raising=False)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.place, made.nodes = place, [made.add_node(num_cpus=1) for _ in range(2)]
        yield made
        ray.shutdown()
        made.shutdown()
    shutil.rmtree(place, ignore_errors=True)


def shard_bytes(cache):
    return {path.name: path.read_bytes() for path in sorted(cache.rglob("shard-*.safetensors"))}


def when_written(cache, count, act):
    """A thread that acts once so many shards are on disk."""

    def watch():
        while len(list(cache.rglob("shard-*.safetensors"))) < count:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_no_shard_is_lost_or_written_twice_when_the_command_and_then_a_node_are_killed(cluster, tmp_path):
    cache, env = tmp_path / "banks", {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    knobs = [*RUN, "engine=ray", f"engine.address={cluster.address}", f"paths.cache={cache}", f"paths.output={tmp_path}/runs"]
    command = forked.start(["task=encode", *knobs, "engine.actors=[1,1]"], env=env)
    when_written(cache, SHARDS // 5, partial(os.kill, command.pid, signal.SIGKILL)).join(100)
    assert command.wait(60).returncode == -signal.SIGKILL
    assert SHARDS // 5 <= len(shard_bytes(cache)) < SHARDS // 2 and not list(cache.rglob("manifest.json"))

    handler = signal.getsignal(signal.SIGTERM)
    removal = when_written(cache, SHARDS // 2, partial(cluster.remove_node, cluster.nodes.pop(), allow_graceful=False))
    accuracy = experiment.run(composed("task=zero_shot", *knobs))
    removal.join(30)
    assert signal.getsignal(signal.SIGTERM) is handler  # Ray sets its own
    assert len(shards_written(cluster.place)) == len({name for _, name in shards_written(cluster.place)}) == SHARDS
    assert len({process for process, _ in shards_written(cluster.place)}) >= 3

    alone = [*RUN, f"paths.cache={tmp_path}/alone", f"paths.output={tmp_path}/runs"]
    assert experiment.run(composed("task=zero_shot", *alone)) == accuracy
    assert shard_bytes(cache) == shard_bytes(tmp_path / "alone")


def pool(cluster, folder, script, **knobs):
    """A pool of scripted actors on a bank of six shards."""
    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False)
    bank = ShardFolder(folder, "key", 12, 2)
    start = partial(ray.remote(num_cpus=1)(Scripted).remote, str(folder), script, bank.count)
    made = ShardPool(start, (1, 2), capacity=2, **{"tries": 2, "skip": False} | knobs)
    with FillLine(bank, views=1, show=False) as line:
        try:
            return made.run(bank.missing(), bank, line), bank.missing(), line
        except BadShardError as error:
            return error, bank.missing(), line


def tries(folder, shard):
    return len(list(folder.glob(f"tried-{shard}-*")))


def test_a_process_that_dies_is_replaced_and_its_shard_encoded_again(cluster, tmp_path):
    images, missing, line = pool(cluster, tmp_path, {3: "die once"})
    assert (images, missing, tries(tmp_path, 3), line.failures) == (12, [], 2, 1)
    assert "encoding: 6 of 6 shards" in line.line() and "failed tries 1, actors " in line.line()


def test_a_slow_actor_holds_its_own_shard_and_no_other(cluster, tmp_path):
    images, missing, line = pool(cluster, tmp_path, {0: "last"})
    assert (images, missing, line.failures) == (12, [], 0) and [tries(tmp_path, shard) for shard in range(6)] == [1] * 6
    assert max(tmp_path.glob("shard-*"), key=lambda path: path.stat().st_mtime_ns).name == "shard-00000.safetensors"


@pytest.mark.parametrize("how", ["raise", "die"])
def test_a_shard_that_always_fails_is_named_after_the_others_are_encoded(cluster, tmp_path, how):
    error, missing, _ = pool(cluster, tmp_path, {0: how}, skip=True)
    assert missing == [0] and tries(tmp_path, 0) == 2
    assert "1 of 6 shards" in str(error) and "shard 0 (images 0 to 1)" in str(error)
    assert ("img-7.jpg" if how == "raise" else "the process that encoded it on node ended") in str(error)


def test_a_shard_that_always_fails_stops_the_run(cluster, tmp_path):
    error, missing, _ = pool(cluster, tmp_path, {0: "raise"}, tries=1)
    assert "engine.on_bad_shard=skip" in str(error) and len(missing) > 2


def test_an_error_while_the_model_is_loaded_is_raised_as_it_is(cluster, tmp_path):
    with refused("the weights are lost"):
        pool(cluster, tmp_path, {-1: "raise"})


def test_a_ray_that_does_not_start_is_said_with_what_to_do(monkeypatch):
    def late(**knobs):
        raise Exception("The current node timed out during startup.")  # as Ray raises it

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with refused("engine.address=null", "timed out during startup", "ray start --head", "engine=local", error=ConnectionError):
        connected(None)


@pytest.mark.parametrize(
    ("knobs", "settings", "told"),
    [
        ({}, {"devices": 2}, "engine.actors=[1,2]"),
        ({}, {"accelerator": "gpu"}, "trainer=gpu engine.num_gpus=1"),
        ({"num_gpus": 1}, {}, "trainer=cpu engine.num_gpus=0"),
    ],
)
def test_settings_that_do_not_fit_a_cluster_are_refused_before_one_is_started(knobs, settings, told, encoder, tmp_path):
    with refused(told):
        feature_bank(
            pictures(2),
            partial(crops.random, n_crops=1, min_side=0.4, max_side=0.8),
            encoder,
            seed=0,
            cache=tmp_path,
            engine=RayEngine(**knobs),
            **settings,
        )


def test_an_engine_needs_a_bank_on_disk_and_an_order_of_its_limits(encoder, tmp_path):
    with refused("bank=disk"):
        experiment.run(composed("engine=ray", "bank=off", *RUN, f"paths.output={tmp_path}", f"paths.cache={tmp_path}"))
    with refused("the smaller number first"):
        RayEngine(actors=[3, 2])


def test_scores_on_the_cluster_have_the_bytes_of_those_of_this_process_and_texts_are_sent_once(cluster, tmp_path, monkeypatch):
    words = [word.replace("test_images=15", "test_images=6").replace("shard_images=1", "shard_images=4") for word in RUN]
    words += ["task=score", f"paths.cache={tmp_path}/banks"]
    accuracy = experiment.run(composed(*words, f"paths.output={tmp_path}/local"))
    sent, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda value: sent.append(type(value)) or put(value))
    there = ["engine=ray", f"engine.address={cluster.address}", "engine.actors=[1,1]", f"paths.output={tmp_path}/ray"]
    assert experiment.run(composed(*words, *there)) == accuracy and sent == [Work]
    local, on_ray = ({path.name: path.read_bytes() for path in (tmp_path / name).rglob("part-*.parquet")} for name in ("local", "ray"))
    assert local == on_ray and len(local) == 6
