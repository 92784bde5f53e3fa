"""ShardEncoder: the actor that encodes shards of a bank, and what it gets once, when it starts."""

import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from multicrop.data.base import LabelledImages
from multicrop.encoder import Encoder
from multicrop.features.base import EncodeSettings
from multicrop.features.engine import ShardWorker
from multicrop.features.identity import ViewRecipe
from multicrop.features.shards import ShardFolder


@dataclass(frozen=True)
class ShardJob:
    """What an actor needs to encode any shard of a bank; `place` is the working folder of the run, and `threads` those of torch."""

    images: LabelledImages
    recipe: ViewRecipe
    key: str
    folder: ShardFolder
    settings: EncodeSettings
    place: Path
    threads: int


class ShardEncoder:
    """The actor: it loads the model once, and encodes one shard per call with the code that fills a bank in a local process."""

    def __init__(self, job: ShardJob) -> None:
        self.job = job

    def load(self) -> str:
        """Load the model.

        Returns:
            The name of this node and the beginning of its number in the cluster.

        Raises:
            ValueError: If the code or the model of this node would give other features than those of the process that started the run.
        """
        from multicrop.model import MultiCropCLIP

        job, node = self.job, prepared(self.job.place, self.job.threads)
        job.folder.path.mkdir(parents=True, exist_ok=True)  # of banks in object storage, local copies and claims
        if job.recipe.identity(job.images, job.settings.cut).key != job.key:
            raise ValueError(f"node {node} has another version of multicrop than the node of the command; install the same on all nodes")
        self.module = MultiCropCLIP(job.recipe.encoder.load(), job.recipe.sampler, seed=job.recipe.seed)
        return node

    def encode(self, shard: int) -> int:
        """Encode one shard, unless another process has claimed it; returns the images encoded here."""
        from multicrop.features.fill import encode_missing

        return encode_missing(self.job.images, self.module, replace(self.job.folder, only=shard), self.job.settings)


@dataclass(frozen=True)
class Work:
    """What an actor needs to work on any shard; `place` is the working folder of the run, and `threads` those of torch."""

    worker: ShardWorker
    place: Path
    threads: int


class WorkActor:
    """The actor of other work on shards, such as scoring, with the methods of `ShardEncoder`."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def load(self) -> str:
        """Prepare, and return the node as `ShardEncoder.load` does."""
        node = prepared(self.work.place, self.work.threads)
        self.work.worker.load()
        return node

    def encode(self, shard: int) -> int:
        """Work on one shard; returns the number of its images."""
        return self.work.worker.encode(shard)


def prepared(place: Path, threads: int) -> str:
    """Use the working folder and the number of threads; gives the name of this node and the beginning of its number in the cluster."""
    import ray

    os.chdir(place)
    torch.set_num_threads(threads)
    return f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:8]})"


@dataclass(frozen=True)
class Loaded:
    """Gives an encoder that was loaded before."""

    encoder: Encoder

    def __call__(self) -> Encoder:
        """The encoder."""
        return self.encoder
