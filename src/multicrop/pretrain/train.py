"""`task=pretrain`: train the embedded CLIP on the drawings of the training vendors and export it as a HuggingFace checkpoint."""

import tempfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from multicrop.data.embedded.artwork import Drawing, load_concepts, training_drawings
from multicrop.files import atomic, make_folder
from multicrop.pretrain.captions import CONTEXT_TOKENS, train_tokenizer
from multicrop.pretrain.compose import Composer
from multicrop.pretrain.data import TrainingBatches, training_loader
from multicrop.pretrain.module import TinyClip
from multicrop.show.wandb_logger import finish

SIDE, PATCH, PROJECTION = 96, 16, 128
STEPS_PER_EPOCH = 50


def tiny_config(vocab_size: int, *, width: int, layers: int, text_width: int, text_layers: int) -> CLIPConfig:
    """A small CLIP; end of text must be token 1 in `text_config`, else the text tower pools the wrong token."""
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"hidden_size": text_width, "intermediate_size": 4 * text_width, "num_attention_heads": text_width // 32}
    text |= {"num_hidden_layers": text_layers, "max_position_embeddings": CONTEXT_TOKENS, "vocab_size": vocab_size}
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}
    vision |= {"num_hidden_layers": layers, "image_size": SIDE, "patch_size": PATCH}
    shared = {"projection_dim": PROJECTION, "hidden_act": "gelu"}
    return CLIPConfig(text_config=text | shared | special, vision_config=vision | shared, projection_dim=PROJECTION, **special)


def sprites_of(drawings: list[Drawing], concepts: list[dict]) -> tuple[Tensor, Tensor]:
    """RGBA sprites (n,4,96,96) uint8 and the concept index of each."""
    row = {concept["concept"]: index for index, concept in enumerate(concepts)}
    pixels = [torch.from_numpy(np.array(drawing.image)).permute(2, 0, 1) for drawing in drawings]
    return torch.stack(pixels), torch.tensor([row[drawing.concept] for drawing in drawings])


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, so that a killed run finds the last whole one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the checkpoint beside its place, then rename it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic(Path(path)) as partial:
            super().save_checkpoint(checkpoint, partial, storage_options)


def export(module: TinyClip, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the model in half precision, with tokenizer and processor, as `from_pretrained` reads it; each file is whole or absent."""
    side = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        module.clip.half().save_pretrained(made)
        module.clip.float()
        CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(made)
        for file in sorted(Path(made).iterdir()):
            file.replace(folder / file.name)


def pretrain(
    *,
    output: Path,
    steps: int,
    batch_size: int,
    seed: int,
    num_workers: int = 1,
    width: int = 192,
    layers: int = 4,
    text_width: int = 128,
    text_layers: int = 3,
    phrases: int = 160,
    lr: float = 1.2e-3,
    decay_share: float = 0.4,
    scene_share: float = 0.6,
    logger: Logger | bool = False,
) -> tuple[L.Trainer, Path]:
    """Train the embedded model, or resume a killed run of the same folder, and export it.

    Reads the training vendors' drawings of the seen concepts and nothing else. `steps` may differ between a run and its resumption.

    Args:
        output: The folder of checkpoints and of the exported model.
        steps: Number of training steps.
        batch_size: Images per step.
        seed: Seed of the weights and of every batch.
        num_workers: Processes that compose batches.
        width: Width of the image tower.
        layers: Layers of the image tower.
        text_width: Width of the text tower.
        text_layers: Layers of the text tower.
        phrases: Part phrases per step.
        lr: Peak learning rate of AdamW; Muon's is twice as high.
        decay_share: Share of the steps in which the rate falls to zero.
        scene_share: Share of the images that show several objects.
        logger: A Lightning logger, or False.

    Returns:
        The trainer, and the folder of the exported model.
    """
    L.seed_everything(seed, verbose=False)
    concepts = [concept for concept in load_concepts() if not concept["unseen"]]
    tokenizer = train_tokenizer(concepts)
    composer = Composer(*sprites_of(training_drawings(), concepts), scene_share=scene_share, patch=PATCH)
    batches = TrainingBatches(composer, concepts, tokenizer, batch_size=batch_size, phrases=phrases, seed=seed)
    config = tiny_config(len(tokenizer), width=width, layers=layers, text_width=text_width, text_layers=text_layers)
    module = TinyClip(config, steps=steps, lr=lr, decay_share=decay_share)
    module.initialise_from(batches[0]["images"])
    per_epoch = min(STEPS_PER_EPOCH, steps)
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=-(-steps // per_epoch),
        logger=logger,
        log_every_n_steps=10,
        plugins=[AtomicCheckpoints()],
        callbacks=[ModelCheckpoint(output / "checkpoints", save_last=True), RichProgressBar()],
        enable_model_summary=False,
    )
    loader = training_loader(batches, done=lambda: int(module.done), steps_per_epoch=per_epoch, num_workers=num_workers)
    last = output / "checkpoints" / "last.ckpt"
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None, weights_only=True)
    export(module, tokenizer, output / "checkpoint")
    return trainer, output / "checkpoint"


@runtime_checkable
class Configured(Protocol):
    """What the entry reads of a run's settings."""

    @property
    def task_knobs(self) -> dict[str, Any]:
        """The values of the task's file."""

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration."""


def run(settings: Configured, cache: object = None) -> float:
    """The entry of `task=pretrain`; returns the last training accuracy, from 0 to 1."""
    knobs = dict(settings.task_knobs)
    output = Path(knobs.pop("output"))
    make_folder(output, "task.output")
    logger = instantiate(settings.config["logger"]) if settings.config["logger"] else CSVLogger(output, name="curves")
    try:
        trainer, folder = pretrain(output=output, seed=settings.config["seed"], logger=logger, **knobs)
    finally:
        finish(logger)
    Console().print(f"checkpoint: {folder} (use it: model=local model.path={folder} 'model.facts.template=\"{{}}\"')", markup=False)
    return float(trainer.callback_metrics.get("train/accuracy", 0.0))
