"""Weights & Biases: offline by default, online when a project or a key is there; the record is mirrored, never replaced."""

import netrc
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb
from lightning.pytorch.loggers import WandbLogger

from multicrop.config import in_sweep
from multicrop.files import redacted
from multicrop.record import FILES
from multicrop.show.examples import unpacked

TAGGED = ("dataset", "crop", "aggregator", "prompt", "model")
LONGEST_TAG = 64  # of W&B
TASK_PARTS = {"few_shot": ("adapter",), "tta": ("method",)}
SMALLER_IS_BETTER = ("ece", "seconds", "p_value", "lost", "skipped_images", "encoder_calls")


def wandb_logger(
    *,
    project: str | None,
    entity: str | None,
    group: str | None,
    job_type: str,
    choices: Mapping[str, str],
    tags: Sequence[str],
    folder: str,
    name: str | None,
) -> WandbLogger:
    """A Lightning logger in the mode that `wandb_mode` finds; its files lie in the run's own folder.

    Without a `group` the jobs of a sweep are a group named like the sweep's folder, and single runs one named like the data set.
    """
    command = " ".join(sys.argv)  # W&B keeps it; where it holds a secret nothing about the machine is sent, the record still says it
    sweep = Path(folder).parent.name if in_sweep() else choices.get("dataset")
    run = wandb.init(
        project=project or "multicrop",
        entity=entity,
        group=group or sweep,
        job_type=job_type,
        tags=[*run_tags(choices), *tags],
        dir=folder,
        name=name,
        mode=wandb_mode(project),
        settings=wandb.Settings(console="off", silent=True, x_disable_meta=command != redacted(command)),
    )
    return WandbLogger(experiment=run, save_dir=folder)


def run_tags(choices: Mapping[str, str]) -> list[str]:
    """The options that tell runs apart, as W&B takes tags: the adapter of few-shot runs and the method of test-time ones too."""
    names = [*TAGGED, *TASK_PARTS.get(choices.get("task", ""), ())]
    return list(dict.fromkeys(str(choices[name])[:LONGEST_TAG] for name in names if choices.get(name)))


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
    classes: Sequence[Mapping],
    examples: Sequence[Mapping],
    record: Path,
    picture: Path | None,
) -> None:
    """Config, summary metrics with their direction, the table of classes, the panels of images, the record itself."""
    run = logger.experiment
    run.config.update(config, allow_val_change=True)
    describe(run, summary)
    panels = {"classes": class_table(classes), **example_panels(examples)}
    run.log(panels | ({"plans": wandb.Image(str(picture))} if picture else {}))
    run.log_artifact(record_artifact(record, run.id))


def describe(run: object, summary: Mapping[str, float]) -> None:
    """Summary metrics, each with the direction in which it is better."""
    for name, value in summary.items():
        run.define_metric(name, summary="min" if name.endswith(SMALLER_IS_BETTER) else "max")
        run.summary[name] = value


def class_table(classes: Sequence[Mapping]) -> wandb.Table:
    """One row a class: images, accuracy, the global view's."""
    columns = ["class", "images", "accuracy", "global"]
    return wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in classes])


def example_panels(examples: Sequence[Mapping]) -> dict[str, list[wandb.Image]]:
    """Rescued, lost and wrong images, each kind a panel; a box names the text that its crop was matched to most."""
    panels: dict[str, list[wandb.Image]] = {}
    for example in examples:
        panels.setdefault(f"images/{example['kind']}", []).append(_with_boxes(example))
    return panels


def _with_boxes(example: Mapping) -> wandb.Image:
    texts, plan = example.get("prompts", ["crop"]), example.get("plan", [[1.0]] * len(example["boxes"]))
    boxes = []
    for (left, top, right, bottom), shares in zip(example["boxes"], plan, strict=True):
        best = max(range(len(shares)), key=shares.__getitem__)
        position = {"minX": left, "maxX": right, "minY": top, "maxY": bottom}
        boxes.append({"position": position, "class_id": best, "box_caption": f"{texts[best]} {shares[best]:.0%}"})
    caption = f"{example['image_id']}: {example['label']}. Global view: {example['global']}. Now: {example['prediction']}"
    shown = {"crops": {"box_data": boxes, "class_labels": dict(enumerate(texts))}} if boxes else None
    return wandb.Image(unpacked(example), caption=caption, boxes=shown)


def record_artifact(record: Path, run_id: str) -> wandb.Artifact:
    """The files of the record; they stay where they are, no second copy is made."""
    artifact = wandb.Artifact(f"record-{run_id}", type="record")
    for name in FILES:
        if (record / name).is_file():
            artifact.add_file(str(record / name), name=name, policy="immutable", skip_cache=True)
    return artifact


def finish(logger: object) -> None:
    """End the W&B run of this job; without it the next job of a multirun would be logged into this one."""
    if isinstance(logger, WandbLogger):
        wandb.finish()
