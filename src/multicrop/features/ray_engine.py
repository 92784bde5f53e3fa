"""RayEngine: actors of a Ray cluster encode the missing shards of a bank. The numbers of shards travel, pixels and features never do."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval, Len

from multicrop.config import in_parallel
from multicrop.config.ranges import Count, OneOf
from multicrop.data.base import LabelledImages
from multicrop.encoder.known import LazyEncoder
from multicrop.features.base import EncodeCost, EncodeSettings
from multicrop.features.engine import ShardWorker, seal
from multicrop.features.fill_line import FillLine, Shards
from multicrop.features.identity import BankIdentity, ViewRecipe, count_views
from multicrop.features.ray_actor import Loaded, ShardEncoder, ShardJob, Work, WorkActor
from multicrop.features.ray_pool import ShardPool
from multicrop.features.shards import ShardFolder

Amount = Annotated[float | int, Interval(gt=0, le=1024)]
Gpus = Annotated[float | int, Interval(ge=0, le=64)]
OnBadShard = Annotated[str, OneOf(("stop", "skip"))]
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RayEngine:
    """Encode the missing shards of a bank on a Ray cluster.

    Each actor loads the model once and runs the code of a local fill, so that a bank has the same bytes with both. The folder of the banks,
    the images and the project must be at the same paths on all nodes. An actor that dies is replaced, and its shard is encoded again.

    Args:
        address: Address of a cluster, or ``"auto"`` for the one that runs on this node. None: the cluster of the variable RAY_ADDRESS or
            the one that runs here, and one on this machine if there is none. ``"local"``: always one on this machine.
        num_cpus: Processors per actor; rounded up, its torch threads.
        num_gpus: GPUs per actor, or a part of one; needs ``trainer=gpu``.
        actors: Fewest and most actors. The fill asks at once for the fewest, or for as many as fit into the cluster, and for more while
            all of them work, so that a cluster that scales can add nodes.
        on_bad_shard: What happens with a shard that fails on every try: ``"stop"`` ends the run at once; ``"skip"`` encodes the other
            shards first. The run then ends with an error in both cases, because a bank is complete or cannot be read.
        tries: Tries per shard.
    """

    needs_disk = True

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: Amount = 1,
        num_gpus: Gpus = 0,
        actors: Annotated[Sequence[Count], Len(2, 2)] = (1, 64),
        on_bad_shard: OnBadShard = "stop",
        tries: Count = 3,
    ) -> None:
        if actors[0] > actors[1]:
            raise ValueError(f"engine.actors is [fewest,most], got {list(actors)}: write the smaller number first")
        self.address, self.num_cpus, self.num_gpus, self.actors = address, num_cpus, num_gpus, (actors[0], actors[1])
        self.on_bad_shard, self.tries = on_bad_shard, tries

    def __call__(
        self, images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, folder: ShardFolder, settings: EncodeSettings
    ) -> None:
        """See ``Engine``.

        Raises:
            BadShardError: If a shard fails on every try.
            ImportError: If Ray is not installed.
            ValueError: If the settings cannot be used on this cluster.
        """
        self._check(settings.accelerator, settings.devices)
        started, views = time.perf_counter(), count_views(recipe.sampler)
        job = self._job(images, recipe, identity, folder, settings)
        with FillLine(folder, views, show=settings.progress) as line:
            encoded = self._run(ShardEncoder, job, folder, line, gpus=self.num_gpus)
        seal(images, recipe, identity, folder, EncodeCost.of(encoded * views, time.perf_counter() - started))

    def each(self, worker: ShardWorker, folder: Shards, *, views: int, progress: bool, accelerator: str | None = None) -> None:
        """See ``Engine``; what the worker holds, such as the features of texts, is sent to the cluster once.

        Raises:
            BadShardError: If a shard fails on every try.
            ImportError: If Ray is not installed.
            ValueError: If the settings cannot be used on this cluster.
        """
        if accelerator is None:
            self._check_launcher()
        else:
            self._check(accelerator)
        with FillLine(folder, views, progress, verb="scoring" if accelerator is None else "predicting") as line:
            gpus = self.num_gpus if accelerator == "gpu" else 0
            self._run(WorkActor, Work(worker, Path.cwd(), math.ceil(self.num_cpus)), folder, line, gpus=gpus)

    def _run(self, actor: type, job: ShardJob | Work, folder: Shards, line: FillLine, *, gpus: float | int) -> int:
        """Work on the missing shards with a pool of actors; returns the number of images."""
        ray, done = connected(self.address), 0
        capacity, reference = self._capacity(ray, gpus), ray.put(job)
        remote = ray.remote(num_cpus=self.num_cpus, num_gpus=gpus, scheduling_strategy="SPREAD")(actor)
        start = partial(remote.remote, reference)
        pool = ShardPool(start, self.actors, capacity=capacity, tries=self.tries, skip=self.on_bad_shard == "skip")
        while missing := folder.missing():
            done += pool.run(missing, folder, line)
        return done

    def _check_launcher(self) -> None:
        if in_parallel():
            raise ValueError(
                "engine=ray needs the basic launcher: jobs of hydra/launcher=ray, joblib or submitit would hold the processors that its "
                "actors wait for. Remove hydra/launcher=..., or use engine=local"
            )

    def _check(self, accelerator: str, devices: int = 1) -> None:
        self._check_launcher()
        if devices > 1:
            raise ValueError(f"engine=ray has one device per actor: use trainer.devices=1 and engine.actors=[1,{devices}]")
        if (accelerator == "gpu") != (self.num_gpus > 0):
            raise ValueError(
                f"trainer.accelerator={accelerator} with engine.num_gpus={self.num_gpus}: write trainer=gpu engine.num_gpus=1 to "
                "encode on GPUs, or trainer=cpu engine.num_gpus=0"
            )

    def _capacity(self, ray: Any, gpus: float | int) -> int:
        """How many actors fit into the cluster now; raises ValueError if it runs on this machine alone and holds none."""
        needed = {"CPU": self.num_cpus, "GPU": gpus}
        found = ray.cluster_resources()
        fit = min(int(found.get(name, 0) / amount) for name, amount in needed.items() if amount)
        if not fit and self.address == "local":
            raise ValueError(
                f"an actor needs engine.num_cpus={self.num_cpus} and engine.num_gpus={self.num_gpus}, and this machine has "
                f"{found.get('CPU', 0):g} processors and {found.get('GPU', 0):g} GPUs: ask for less, or name a cluster with engine.address"
            )
        return fit

    def _job(
        self, images: LabelledImages, recipe: ViewRecipe, identity: BankIdentity, folder: ShardFolder, settings: EncodeSettings
    ) -> ShardJob:
        """What travels to the actors, once: ids, paths, the recipe of the views, and the weights of an encoder that has no file."""
        lazy = recipe.encoder
        make = lazy.elsewhere or Loaded(lazy.load())
        there = ViewRecipe(LazyEncoder(lazy.facts, make), recipe.sampler, recipe.seed)
        plain = replace(images, content=images.fingerprint, parent=None)
        own = replace(folder, path=folder.path.absolute())
        quiet = replace(settings, progress=False)
        return ShardJob(plain, there, identity.key, own, quiet, Path.cwd(), threads=math.ceil(self.num_cpus))


def connected(address: str | None) -> Any:
    """The module ray, connected to a cluster; one that this process has joined before is kept.

    Args:
        address: See ``RayEngine``.

    Raises:
        ImportError: If Ray is not installed.
        ConnectionError: If there is no cluster at the address, or none can be started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray sends usage statistics
    try:
        import ray
    except ImportError as error:
        raise ImportError("engine=ray needs Ray: pip install -c constraints.txt -e '.[ray]'") from error
    if not ray.is_initialized():
        with _own_signals():
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except ConnectionError:
                raise
            except Exception as error:  # Ray has no type for a node that does not start in time
                raise ConnectionError(
                    f"engine=ray expected a Ray cluster at engine.address={address or 'null'}, and Ray said: {error} Call again when the "
                    "machine is less busy, start Ray by hand (`ray start --head`, then engine.address=auto), or use engine=local"
                ) from error
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers of signals, which Ray replaces when it connects."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
