"""What experiments/cost measures: which images are right with each way of looking, on test and on validation images of one stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from multicrop.config import register_resolvers
from multicrop.features.identity import ViewRecipe
from multicrop.files import atomic, content_hash
from multicrop.runs.session import Session
from multicrop.runs.settings import settings_of
from multicrop.runs.sweep_cache import SweepCache

ROOT = Path(__file__).parents[2]
VENDORS = {"scenes": "dataset.vendor={}", "emoji": "dataset.vendors=[{}]"}
HELD_OUT = ("fluent-3d", "noto-v1", "streamline")  # near, middle, far
LEFT_OUT = "dataset.leave_out=noto"  # a training vendor, whose drawings are the validation images
POLICIES = ("random", "quasi_random", "diverse")
SIDES = (80, 64, 48)  # pixels of a crop, under the 96 px of the embedded model


@dataclass(frozen=True)
class Plan:
    """What is measured: streams, crop seeds, the most crops per policy, and the crops at smaller sides."""

    seeds: tuple[int, ...] = (0, 1, 2)
    most: int = 16
    streams: tuple[tuple[str, str], ...] = tuple((data, vendor) for data in VENDORS for vendor in HELD_OUT)
    policies: tuple[str, ...] = POLICIES
    sides: tuple[int, ...] = SIDES
    overrides: tuple[str, ...] = ()

    @property
    def counts(self) -> list[int]:
        """Numbers of crops: powers of two up to the most."""
        return [2**power for power in range(self.most.bit_length()) if 2**power <= self.most]

    @property
    def looks(self) -> list["Look"]:
        """Every bank of a stream: policies at the model's side, and random crops at smaller sides."""
        small = [Look("random", side) for side in self.sides]
        return [*(Look(policy) for policy in self.policies), *small]

    @property
    def wanted(self) -> list[tuple[str, "Look"]]:
        """Split and look of each measurement of a stream; the cascade chooses its thresholds on validation images."""
        return [*(("test", look) for look in self.looks), ("validation", Look("random"))]


SMALL = Plan((0, 1), 4, (("scenes", "noto-v1"), ("emoji", "noto-v1")), ("random", "diverse"), (48,))
SMALL_DATA = {"scenes": ("dataset.n_classes=8", "dataset.test_images=2", "dataset.validation_images=1"), "emoji": ("dataset.unseen=true",)}


@dataclass(frozen=True)
class Look:
    """A crop policy, and the side of its crops in pixels (None: the model's)."""

    policy: str
    side: int | None = None

    def __str__(self) -> str:
        return self.policy if self.side is None else f"{self.policy}, {self.side} px"


@dataclass(frozen=True)
class Measured:
    """One stream under one look and crop seed.

    Attributes:
        correct: Which images are right with each number of crops, beginning with none: (counts + 1, images).
        sure: The highest probability that the global view gives, per image.
        clusters: The cluster of each image.
        share: The cost of a crop as a share of the global view's, by arithmetic.
    """

    correct: np.ndarray
    sure: np.ndarray
    clusters: np.ndarray
    share: float


def forward_share(vision: dict, side: int | None) -> float:
    """Multiplications of a view of this side, as a share of the model's side: linear layers and attention of a vision transformer."""
    if side is None:
        return 1.0

    def cost(pixels: int) -> float:
        tokens, width = (pixels // vision["patch_size"]) ** 2 + 1, vision["hidden_size"]
        return tokens * (4 * width**2 + 2 * width * vision["intermediate_size"]) + 2 * tokens**2 * width

    return cost(side) / cost(vision["image_size"])


def session_of(data: str, vendor: str, look: Look, seed: int, most: int, overrides: tuple[str, ...], cache: SweepCache) -> Session:
    """The run's parts: D&D fused with the global view, and the look's crops."""
    own = [f"dataset={data}", VENDORS[data].format(vendor), LEFT_OUT, "aggregator=dnd_fused", "logger=none", f"crop_seed={seed}"]
    crops = [f"crop={look.policy}", f"crop.n_crops={most}", f"model.crop_side={'null' if look.side is None else look.side}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return Session(settings_of(compose("config", [*own, *crops, *overrides])), cache)


def identity_of(session: Session, counts: list[int]) -> str:
    """A hash of all that decides a measurement, the code of its features included: with another one it is made anew."""
    recipe, settings = ViewRecipe(session.lazy_encoder, session.sampler, session.settings["crop_seed"]), session.settings
    bank = recipe.identity(session.scored_images, settings.compute.cut).key
    return content_hash(bank, session.facts.tokens, session.aggregator.identity, settings.task["fusion_weight"], session.prompts, counts)


@torch.inference_mode()
def measure(session: Session, counts: list[int]) -> Measured:
    """Encode the images of the session's split, or open their bank, and score them with each number of crops."""
    bank, scorer = session.bank(session.scored_images), session.scorer
    views, labels = bank.tensors()
    whole = torch.cat([scorer.global_logits(part) for part in views.split(64)])
    rows = [whole.argmax(1) == labels]
    for count in counts:
        logits = torch.cat([scorer(part[:, : 1 + count]) for part in views.split(64)])
        rows.append(logits.argmax(1) == labels)
    images = bank.images
    clusters = [images.clusters[index] for index in bank.positions] if images.clusters else [""] * len(labels)
    config = session.encoder.model.config.vision_config
    share = forward_share(config.to_dict(), session.encoder.spec.crop_side)
    return Measured(torch.stack(rows).numpy(), whole.softmax(1).amax(1).numpy(), np.asarray(clusters), share)


def measure_all(plan: Plan, folder: Path, small: bool) -> Iterator[None]:
    """Measure what the folder does not hold yet, the streams with one seed after the other; returns control after each stream."""
    register_resolvers()
    folder.mkdir(parents=True, exist_ok=True)
    cache = SweepCache()
    for seed, (data, vendor) in product(plan.seeds, plan.streams):
        overrides = (*plan.overrides, *(SMALL_DATA[data] if small else ()))
        for split, look in plan.wanted:
            session = session_of(data, vendor, look, seed, plan.most, (*overrides, f"split={split}"), cache)
            keep(file_of(folder, data, vendor, split, look, seed), session, plan.counts)
        yield


def seeds_of(plan: Plan, folder: Path, data: str, vendor: str) -> tuple[int, ...]:
    """The crop seeds with which everything of a stream was measured."""
    files = {seed: [file_of(folder, data, vendor, split, look, seed) for split, look in plan.wanted] for seed in plan.seeds}
    return tuple(seed for seed, own in files.items() if all(file.is_file() for file in own))


def keep(path: Path, session: Session, counts: list[int]) -> None:
    """Measure a look and write it, unless the file holds this measurement."""
    identity = identity_of(session, counts)
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["identity"]) == identity:
                return
    found = measure(session, counts)
    with atomic(path) as partial, partial.open("wb") as file:
        np.savez(file, correct=found.correct, sure=found.sure, clusters=found.clusters, share=found.share, identity=identity)
    print(f"{path.stem}: {found.correct.shape[1]} images, {100 * found.correct[-1].mean():.1f} %", flush=True)


def file_of(folder: Path, data: str, vendor: str, split: str, look: Look, seed: int) -> Path:
    """Where a measurement is kept."""
    return folder / f"{data}-{vendor}-{split}-{look.policy}-{look.side or 'full'}-{seed}.npz"


def read(folder: Path, data: str, vendor: str, split: str, look: Look, seeds: tuple[int, ...]) -> list[Measured]:
    """The measurements of one look, one per seed."""
    found = []
    for seed in seeds:
        with np.load(file_of(folder, data, vendor, split, look, seed)) as stored:
            found.append(Measured(stored["correct"], stored["sure"], stored["clusters"], float(stored["share"])))
    return found
