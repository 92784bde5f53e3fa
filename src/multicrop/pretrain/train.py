"""`task=pretrain`: train the embedded CLIP on the drawings of the training vendors and export it as a HuggingFace checkpoint."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.console import Console

from multicrop.config.ranges import Count, Fraction, KnobsOf, Natural, Positive, Seed, Workers
from multicrop.data.embedded.artwork import load_concepts
from multicrop.files import make_folder
from multicrop.pretrain.captions import train_tokenizer
from multicrop.pretrain.checkpoint import PATCH, SIDE, AtomicCheckpoints, Start, export, tiny_config
from multicrop.pretrain.data import DataKnobs, TrainingBatches, training_data, training_loader
from multicrop.pretrain.distil import DistilledClip, SidePictures, Teacher
from multicrop.pretrain.module import TinyClip
from multicrop.show.wandb_logger import finish

STEPS_PER_EPOCH = 50  # between two checkpoints; the last epoch has the steps that are left
OPTIMIZERS = 2  # Lightning counts the steps of Muon and of AdamW


@dataclass(frozen=True)
class Recipe:
    """What decides the weights besides the data: sizes, start, schedule and batches.

    Attributes:
        steps: Number of training steps; may differ between a run and its resumption.
        batch_size: Images per step.
        seed: Seed of the weights and of every batch.
        width: Width of the image tower; this and the next three are those of the checkpoint where there is `init`.
        layers: Layers of the image tower.
        text_width: Width of the text tower.
        text_layers: Layers of the text tower.
        train_text: Whether the text tower is trained too.
        phrases: Part phrases per step.
        lr: Peak learning rate of AdamW; Muon's is twice as high.
        warmup_steps: Steps in which the rate rises.
        decay_share: Share of the steps in which the rate falls to zero.
        init: Checkpoint folder to start from, `embedded` for the shipped one, or None to start at random.
        init_share: Share of the initial weights in the exported average, where there is `init`.
        teacher: Checkpoint folder, or `embedded`, whose image features are learned instead of the labels; None for labels.
        sides: Sides of the student's pictures in pixels, where there is a teacher; one that comes twice gets twice as many pictures.
        visits: How often each picture is seen, where there is a teacher.
        precision: Lightning's precision; `32-true` on processors without bfloat16 instructions.
    """

    steps: Count
    batch_size: Count
    seed: Seed
    width: Count = 192
    layers: Count = 4
    text_width: Count = 128
    text_layers: Count = 3
    train_text: bool = True
    phrases: Natural = 160
    lr: Positive = 1.2e-3
    warmup_steps: Natural = 100
    decay_share: Fraction = 0.4
    init: str | None = None
    init_share: Fraction = 0.0
    teacher: str | None = None
    sides: Sequence[Count] = (SIDE,)
    visits: Count = 4
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed"


class StepsBar(RichProgressBar):
    """The progress bar of a training whose end is a step: it does not say how many epochs there are."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}"


def pretrain(
    recipe: Recipe, data: DataKnobs | None = None, *, output: Path, num_workers: Workers = 1, logger: Logger | bool = False
) -> tuple[L.Trainer, Path]:
    """Train the embedded model, or resume a killed run of the same folder, and export it.

    Reads the training vendors' drawings of the seen concepts and nothing else. The metadata of the exported weights name the vendors, the
    hash of the data, and the recipe.

    Args:
        recipe: Sizes, start, schedule and batches.
        data: What the pictures are composed of; None composes the drawings as they are.
        output: The folder of checkpoints and of the exported model.
        num_workers: Processes that compose batches.
        logger: A Lightning logger, or False.

    Returns:
        The trainer, and the folder of the exported model.

    Raises:
        ValueError: If `recipe.init`, `recipe.teacher` or `data.restyled` is no such folder, `data.leave_out` is no training vendor, or the
            recipe has sides without a teacher, or a teacher without a start or with a text tower to train.
    """
    _check_sides(recipe)
    L.seed_everything(recipe.seed, verbose=False)
    concepts = [concept for concept in load_concepts() if not concept["unseen"]]
    composer, made_from = training_data(concepts, data or DataKnobs())
    start = Start.from_checkpoint(recipe.init) if recipe.init else None
    tokenizer = start.tokenizer if start else train_tokenizer(concepts)
    if recipe.teacher and start:
        teacher = Teacher(Start.from_checkpoint(recipe.teacher, "task.teacher"), _texts(concepts))
        knobs = {"batch_size": recipe.batch_size, "visits": recipe.visits, "seed": recipe.seed}
        batches = SidePictures(composer, teacher, recipe.sides, **knobs)
        module = DistilledClip(start, teacher, recipe.sides, **_schedule(recipe))
    else:
        batches = TrainingBatches(composer, concepts, tokenizer, batch_size=recipe.batch_size, phrases=recipe.phrases, seed=recipe.seed)
        module = _module(recipe, start, batches)
    per_epoch = min(STEPS_PER_EPOCH, recipe.steps)
    trainer = L.Trainer(
        accelerator="cpu",
        precision=recipe.precision,
        max_steps=OPTIMIZERS * recipe.steps,
        max_epochs=-1,
        logger=logger,
        log_every_n_steps=10,
        plugins=[AtomicCheckpoints()],
        callbacks=[ModelCheckpoint(output / "checkpoints", save_last=True), StepsBar()],
        enable_model_summary=False,
    )
    loader = training_loader(batches, recipe.steps, done=lambda: int(module.done), steps_per_epoch=per_epoch, num_workers=num_workers)
    last = output / "checkpoints" / "last.ckpt"
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    if start:
        module.clip.load_state_dict(start.averaged(module.clip.state_dict(), recipe.init_share))
        made_from |= {"init": start.content}
    export(module.clip, tokenizer, output / "checkpoint", {**made_from, "recipe": asdict(recipe)})
    return trainer, output / "checkpoint"


def _module(recipe: Recipe, start: Start | None, batches: TrainingBatches) -> TinyClip:
    """The model before its first step."""
    sizes = {"width": recipe.width, "layers": recipe.layers, "text_width": recipe.text_width, "text_layers": recipe.text_layers}
    config = start.config if start else tiny_config(len(batches.tokenizer), **sizes)
    module = TinyClip(config, train_text=recipe.train_text, **_schedule(recipe))
    if start:
        module.clip.load_state_dict(start.weights)
    else:
        module.initialise_from(batches[0]["images"])
    return module


def _texts(concepts: Sequence[dict]) -> list[str]:
    """The names of all concepts, and the phrases about their parts."""
    return [concept["name"] for concept in concepts] + sorted({part for concept in concepts for part in concept["parts"]})


def _schedule(recipe: Recipe) -> dict[str, Any]:
    return {"steps": recipe.steps, "lr": recipe.lr, "warmup_steps": recipe.warmup_steps, "decay_share": recipe.decay_share}


def _check_sides(recipe: Recipe) -> None:
    if recipe.teacher is None:
        if set(recipe.sides) != {SIDE}:
            raise ValueError(f"task.sides={list(recipe.sides)} needs a teacher: set task.teacher=embedded, or task.sides=[{SIDE}]")
        return
    if recipe.init is None or recipe.train_text:
        raise ValueError("task.teacher trains the image tower of a checkpoint: set task.init=embedded and task.train_text=false")
    if wrong := [side for side in recipe.sides if side % PATCH or side > SIDE]:
        raise ValueError(f"task.sides are multiples of {PATCH} px up to {SIDE}; got {wrong}")


@runtime_checkable
class Configured(Protocol):
    """What the entry reads of a run's settings."""

    @property
    def task_knobs(self) -> dict[str, Any]:
        """The values of the task's file."""

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration."""


def run(settings: Annotated[Configured, KnobsOf(Recipe, DataKnobs, pretrain)], cache: object = None) -> float:
    """The entry of `task=pretrain`; returns the last training accuracy, from 0 to 1."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its import sets INFO
    knobs = dict(settings.task_knobs) | {"seed": settings.config["seed"]}
    output = Path(knobs.pop("output"))
    make_folder(output, "task.output")
    data = DataKnobs(**{field.name: knobs.pop(field.name) for field in fields(DataKnobs)})
    recipe = Recipe(**{field.name: knobs.pop(field.name) for field in fields(Recipe)})
    logger = instantiate(settings.config["logger"]) if settings.config["logger"] else CSVLogger(output, name="curves")
    try:
        trainer, folder = pretrain(recipe, data, output=output, logger=logger, **knobs)
    finally:
        finish(logger)
    Console().print(f"checkpoint: {folder} (use it: model=local model.path={folder} 'model.facts.template=\"{{}}\"')", markup=False)
    return float(trainer.callback_metrics.get("train/accuracy", 0.0))
