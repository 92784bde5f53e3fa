"""`task=explain image=PATH`: classify images among a data set's classes and show the crops, the texts and the words that decided."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache as once
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from multicrop.crops.views import image_views
from multicrop.data.images import ImageError, shared_pixels
from multicrop.files import make_folder, write_text
from multicrop.model import MultiCropCLIP
from multicrop.record import Record, read_record
from multicrop.runs.explained_images import USAGE, Asked, DataImages, asked_images
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.show.explain.explanation import Explanation, explain
from multicrop.show.explain.table import facts, write_explanation
from multicrop.show.terminal import console

log = logging.getLogger(__name__)
# Parts of the configuration that are not taken from the record
OWN = ("image", "record", "on_unreadable", "paths", "trainer", "engine", "logger", "rerun", "pictures", "examples")


def run(settings: Settings, cache: SweepCache | None = None) -> float:
    """Explain each image: a table, NAME.png and NAME.html in the run's folder; returns the mean probability of the predicted classes."""
    record = read_record(Path(settings["record"])) if settings["record"] else None
    settings = settings if record is None else settings_of_record(settings, record)
    session = Session(settings, cache)
    images = asked_images(settings["image"], once(lambda: DataImages(session.dataset, settings["split"])))
    output = settings.output
    make_folder(output, "paths.output")
    explained: list[Explanation] = []
    for asked in images:
        try:
            image = asked.open()
        except ImageError as error:
            if asked.named or settings["on_unreadable"] == "raise":
                raise
            log.warning("%s; skipped", error)
            continue
        item = explain_asked(session, asked, image, record)
        write_explanation(item, output / f"{len(explained):03d}-{Path(asked.name).stem}", console)
        explained.append(item)
    if not explained:
        raise ValueError(f"none of the {len(images)} images can be read; {USAGE}")
    write_text(output / "explanations.json", json.dumps([facts(item) for item in explained], indent=1))
    return sum(item.probability for item in explained) / len(explained)


def settings_of_record(settings: Settings, record: Record) -> Settings:
    """The settings of a recorded run, for the images and the folders of this one.

    Raises:
        ValueError: If the command line also sets what the record decides.
    """
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    if changed := [one for one in overrides if not one.startswith("task=") and one.lstrip("+~").split("=")[0].split(".")[0] not in OWN]:
        raise ValueError(f"record={settings['record']} brings its own configuration; remove {' '.join(changed)}, or remove record=...")
    own = {name: settings.config[name] for name in OWN if name in settings.config}
    weight = record.config["task"].get("fusion_weight", settings.task["fusion_weight"])
    config = {**settings.config, **record.config, **own, "task": {**settings.task, "fusion_weight": weight}}
    choices = {**settings.choices, **record.environment.get("choices", {}), "task": "explain"}
    return replace(settings, config=config, choices=choices)


def explain_asked(session: Session, asked: Asked, image: Image.Image, record: Record | None = None) -> Explanation:
    """Explain an image of the task.

    An image of the data set has the crops and the class that it has in a run. Where the run has an adapter or a method, the record's
    logits say which classes are explained.
    """
    names = session.dataset.class_names
    row = None if record is None or asked.label is None else _row(record, asked.name)
    final = _recorded_logits(record, row, len(names)) if record is not None else None
    logits = None if final is None else lambda views: final[None]
    label = None if asked.label is None else names[asked.label]
    item = explain_image(session, asked.name, image, logits=logits, label=label)
    if record is not None and row is not None and (found := names[int(record.predictions.rows["final"][row])]) != item.predicted.name:
        log.warning("%s: the record predicts %s; its data, model or code is not that of today", asked.name, found)
    return item


@torch.inference_mode()
def explain_image(
    session: Session,
    name: str,
    image: Image.Image,
    *,
    logits: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 1.0,
    label: str | None = None,
) -> Explanation:
    """Encode one RGB image and explain its class; its crops are keyed by the name.

    Args:
        session: The parts of the run.
        name: Id of the image.
        image: The image.
        logits: Maps views (1, views, dim) to the logits (1, classes) that predict; None: the scorer's.
        temperature: Divides the logits before the softmax.
        label: The true class of an image of the data set, whose features are rounded as a bank on disk rounds them; None: another image.
    """
    views, boxes = encoded_views(session, name, image)
    if label is not None and session.settings["bank"] == "disk":
        views = normalize(views.half().float(), dim=-1)
    predicting = None if logits is None else logits(views[None])[0]
    how = {"name": name, "open_image": lambda: image, "logits": predicting, "temperature": temperature, "label": label}
    return explain(session.scorer, views, boxes, session.dataset.class_names, **how)


@torch.inference_mode()
def encoded_views(session: Session, name: str, image: Image.Image) -> tuple[Float[Tensor, "views dim"], Float[Tensor, "views 4"]]:
    """Features and boxes of the views of one RGB image; its crops are keyed by the name."""
    encoder = session.encoder
    pixels, boxes = image_views(shared_pixels(image), name, session.sampler, encoder.spec, session.settings["crop_seed"])
    return MultiCropCLIP(encoder, session.sampler).features(pixels, boxes[None])[0], boxes


def _row(record: Record, image_id: str) -> int | None:
    """The row of an image in the record; None where the run did not score it."""
    ids = list(record.predictions.image_id)
    return ids.index(image_id) if image_id in ids else None


def _recorded_logits(record: Record, row: int | None, classes: int) -> Float[Tensor, " classes"] | None:
    """The highest final logits of a run with an adapter or a method, minus infinity for the other classes; else None."""
    task = record.config["task"]["name"]
    if task == "zero_shot":
        return None
    if row is None:
        log.warning("the record has no logits of this image: it is explained by the aggregator, without the part that task=%s adds", task)
        return None
    logits = torch.full((classes,), -torch.inf)
    scored = record.scores()
    logits[torch.tensor(scored.top_classes[row], dtype=torch.long)] = torch.tensor(scored.top_logits[row], dtype=torch.float32)
    return logits
