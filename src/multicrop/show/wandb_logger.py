"""Weights & Biases: offline by default, online with a project or a key; the record is copied to W&B, which does not replace it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from multicrop.config import in_sweep, parts_of
from multicrop.config.machine import wandb_mode
from multicrop.files import redacted
from multicrop.record import FILES
from multicrop.show.examples import unpacked

if TYPE_CHECKING:
    import wandb  # loaded where it is used: a run without a logger saves half a second

TAGGED = ("dataset", "crop", "aggregator", "prompt", "model")
LONGEST_TAG = 64  # W&B's limit, characters
SMALLER_IS_BETTER = ("ece", "seconds", "p_value", "lost", "skipped_images", "encoder_calls")


def wandb_logger(
    *,
    project: str | None,
    entity: str | None,
    group: str | None,
    job_type: str,
    choices: Mapping[str, str | None],
    tags: Sequence[str],
    folder: str,
    name: str | None,
) -> WandbLogger:
    """Start a W&B run and return its Lightning logger, in the mode that ``wandb_mode`` returns.

    Args:
        project: W&B project; None for ``multicrop``.
        entity: W&B user or team; None for the user's default.
        group: W&B group; None for the name of the sweep's folder, or of the data set outside a sweep.
        job_type: W&B job type.
        choices: Option per config group, from which tags are made.
        tags: More tags.
        folder: Folder of the run, where W&B writes its files.
        name: Name of the W&B run; None for a generated one.

    Returns:
        The logger.
    """
    import wandb

    command = " ".join(sys.argv)  # W&B stores it with facts about the machine: neither is sent if the command holds a secret
    sweep = Path(folder).parent.name if in_sweep() else choices.get("dataset")
    run = wandb.init(
        project=project or "multicrop",
        entity=entity,
        group=redacted(group or sweep),
        job_type=job_type,
        tags=redacted([*run_tags(choices), *tags]),
        dir=folder,
        name=redacted(name),
        mode=wandb_mode(project),
        settings=wandb.Settings(console="off", silent=True, x_disable_meta=command != redacted(command)),
    )
    return WandbLogger(experiment=run, save_dir=folder)


def run_tags(choices: Mapping[str, str | None]) -> list[str]:
    """W&B tags of a run: its main options, with the adapter of a few-shot run or the method of a test-time run."""
    names = [*TAGGED, *parts_of(choices.get("task") or "")]
    return list(dict.fromkeys(str(choices[name])[:LONGEST_TAG] for name in names if choices.get(name)))


def log_run(
    logger: WandbLogger,
    *,
    summary: dict[str, float],
    classes: Sequence[Mapping],
    examples: Sequence[Mapping],
    record: Path,
    picture: Path | None,
) -> None:
    """Log a finished run to W&B.

    Args:
        logger: The run's logger.
        summary: Metrics by name.
        classes: Rows of ``compare.details.class_table``.
        examples: Pictures of single images, as ``show.examples`` makes them.
        record: Folder of the record, which is added as an artifact.
        picture: Picture of explanations, if there is one.
    """
    import wandb

    run = logger.experiment
    describe(run, summary)
    panels = {"classes": class_table(classes), **example_panels(examples)}
    run.log(panels | ({"plans": wandb.Image(str(picture))} if picture else {}))
    run.log_artifact(record_artifact(record, run.id))


def describe(run: "wandb.Run", summary: Mapping[str, float]) -> None:
    """Set the summary metrics, and for each whether higher or lower is better."""
    for name, value in summary.items():
        run.define_metric(name, summary="min" if name.endswith(SMALLER_IS_BETTER) else "max")
        run.summary[name] = value


def class_table(classes: Sequence[Mapping]) -> "wandb.Table":
    """The W&B table of classes: images, accuracy, accuracy of the global view."""
    import wandb

    columns = ["class", "images", "accuracy", "global"]
    return wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in classes])


def example_panels(examples: Sequence[Mapping]) -> "dict[str, list[wandb.Image]]":
    """One panel per kind of image (rescued, lost, wrong); a box has the text that receives most of its crop's mass.

    W&B shows the pictures of a panel in the size of the first, so all are padded to one size.
    """
    pictures = [unpacked(example) for example in examples]
    size = tuple(max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    panels: dict[str, list[wandb.Image]] = {}
    for example, picture in zip(examples, pictures, strict=True):
        panels.setdefault(f"images/{example['kind']}", []).append(_with_boxes(example, picture, size))
    return panels


def _with_boxes(example: Mapping, picture: Image.Image, size: tuple[int, ...]) -> "wandb.Image":
    """One picture at the top left of a canvas of this size, with its boxes."""
    import wandb

    canvas = Image.new("RGB", (size[0], size[1]), "white")
    canvas.paste(picture, (0, 0))
    across, down = picture.width / canvas.width, picture.height / canvas.height
    texts, plan = example.get("prompts", ["crop"]), example.get("plan", [[1.0]] * len(example["boxes"]))
    boxes = []
    for (left, top, right, bottom), shares in zip(example["boxes"], plan, strict=True):
        best = max(range(len(shares)), key=shares.__getitem__)
        position = {"minX": left * across, "maxX": right * across, "minY": top * down, "maxY": bottom * down}
        boxes.append({"position": position, "class_id": best, "box_caption": f"{texts[best]} {shares[best]:.0%}"})
    caption = f"{example['image_id']}: {example['label']}. Global view: {example['global']}. Now: {example['prediction']}"
    shown = {"crops": {"box_data": boxes, "class_labels": dict(enumerate(texts))}} if boxes else None
    return wandb.Image(canvas, caption=caption, boxes=shown)


def record_artifact(record: Path, run_id: str) -> "wandb.Artifact":
    """The artifact of a record's files, which W&B reads in place, without a copy in its cache."""
    import wandb

    artifact = wandb.Artifact(f"record-{run_id}", type="record")
    for name in FILES:
        if (record / name).is_file():
            artifact.add_file(str(record / name), name=name, policy="immutable", skip_cache=True)
    return artifact


def finish(logger: object) -> None:
    """Finish the W&B run of this job; otherwise the next job of a multirun would log into it."""
    if isinstance(logger, WandbLogger):
        import wandb

        wandb.finish()
