"""Weights & Biases: offline by default, online when a project or a key is there; the record is mirrored, never replaced."""

import netrc
import os
from collections.abc import Sequence
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image, ImageDraw
from torch import Tensor

from multicrop.bank import ImageBank
from multicrop.views import unmirrored

PANEL_IMAGES = 24


def wandb_logger(
    *, project: str | None, entity: str | None, group: str | None, job_type: str, tags: Sequence[str], folder: str, name: str | None
) -> WandbLogger:
    """A Lightning logger in the mode that `wandb_mode` finds; its files lie in the run's own folder."""
    return WandbLogger(
        project=project or "multicrop",
        entity=entity,
        group=group,
        job_type=job_type,
        tags=list(tags),
        save_dir=folder,
        name=name,
        mode=wandb_mode(project),
        settings=wandb.Settings(console="off", silent=True),
    )


def wandb_mode(project: str | None) -> str:
    """WANDB_MODE where the user sets it; else online with a project or a key at hand; else offline, without asking for a login."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if project or os.environ.get("WANDB_API_KEY") or _netrc_has_wandb() else "offline"


def _netrc_has_wandb() -> bool:
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def log_run(
    logger: WandbLogger,
    *,
    config: dict,
    summary: dict[str, float],
    results: dict[str, Tensor],
    bank: ImageBank,
    class_names: list[str],
    picture: Path | None,
) -> None:
    """Config, summary metrics, the table of rescued and misclassified images with boxes, and the picture of the plans."""
    run = logger.experiment
    run.config.update(config, allow_val_change=True)
    for name, value in summary.items():
        if name.endswith("accuracy"):
            run.define_metric(name, summary="max")
        run.summary[name] = value
    run.log({"images": example_table(results, bank, class_names)})
    if picture:
        run.log({"plans": wandb.Image(str(picture))})


def example_table(results: dict[str, Tensor], bank: ImageBank, class_names: list[str]) -> wandb.Table:
    """Rescued images (wrong with the global view, right now) and misclassified ones, with picture and boxes."""
    columns = ["image_id", "kind", "label", "global view says", "prediction", "image"]
    table = wandb.Table(columns=columns)
    label, base, final = results["label"], results["global"].argmax(1), results["final"].argmax(1)
    rescued = ((final == label) & (base != label)).nonzero().squeeze(1)
    wrong = (final != label).nonzero().squeeze(1)
    for kind, positions in (("rescued", rescued), ("misclassified", wrong)):
        for position in positions[:PANEL_IMAGES].tolist():
            index = int(results["index"][position])
            names = [class_names[int(x[position])] for x in (label, base, final)]
            picture = wandb.Image(_with_boxes(bank, index))
            table.add_data(bank.images.ids[index], kind, *names, picture)
    return table


def _with_boxes(bank: ImageBank, index: int) -> Image.Image:
    image = bank.images.open(index).copy()
    draw = ImageDraw.Draw(image)
    for box in unmirrored(bank.boxes(index))[1:].tolist():
        draw.rectangle(box, outline=(220, 30, 90))
    return image


def finish(logger: object) -> None:
    """End the W&B run of this job; without it the next job of a multirun would be logged into this one."""
    if isinstance(logger, WandbLogger):
        wandb.finish()
