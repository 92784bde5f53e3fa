"""Images of unknown classes (``ood``): which they are, and how well a task's scores tell them from the scored ones."""

import logging
from dataclasses import replace
from typing import Any

import torch

from multicrop.compare.trust import detection_measures
from multicrop.data.base import LabelledImages
from multicrop.data.halves import HALVES
from multicrop.data.limit import limited
from multicrop.runs.session import Session, split_of
from multicrop.runs.task import BankTask

log = logging.getLogger(__name__)


def unknown_images(session: Session) -> LabelledImages | None:
    """The images of unknown classes that the configuration names; None where it names none.

    Args:
        session: The parts of the run.

    Raises:
        ValueError: If ``ood`` is a half of the classes and the other half is not scored, the images are a stream, or all of them are of
            scored classes.
    """
    config, dataset = session.settings.config, session.dataset
    if (name := config.get("ood")) is None:
        return None
    if name in HALVES and config.get("classes") != (other := HALVES[1 - HALVES.index(name)]):
        raise ValueError(f"ood={name} is a half of the classes, of which the other is scored: pass classes={other} ood={name}")
    changed = {"classes": name} if name in HALVES else {"classes": "all", "dataset": config["ood_knobs"]}
    other_set = Session(replace(session.settings, config={**config, **changed}), session.cache).dataset
    images = split_of(other_set, session.settings["split"])
    if images.indexed is False:
        raise ValueError(f"ood={name} is a stream, and the images of unknown classes are read by position; use dataset.streaming=false")
    scored = set(dataset.class_names)
    kept = [i for i, label in enumerate(images.labels) if other_set.class_names[label] not in scored]
    if not kept:
        raise ValueError(f"every class of ood={name} is a class of {dataset.name}; name a data set with other classes")
    if left_out := len(images) - len(kept):
        log.warning(f"{left_out} of {len(images)} images of ood={name} are of classes that {dataset.name} has too, and are left out")
    return limited(images.subset(kept) if left_out else images, session.settings.limit)


def score_unknown(session: Session, task: BankTask) -> dict[str, Any]:
    """Score images of unknown classes after the stream of the others, and add AUROC and FPR95 of each row to ``task.trust``.

    Args:
        session: The parts of the run.
        task: The task after its stream; a test-time method goes on from its state, and what was collected stays as it is.

    Returns:
        The data set and the number of images of unknown classes, for the record; empty where the configuration names none.
    """
    if (images := unknown_images(session)) is None:
        return {}
    known, collected, seconds = task.results(), task.collected, dict(task.seconds)
    bank = session.bank(images)
    task.read(bank.images)
    task.collected = {}
    with torch.inference_mode():
        for number, batch in enumerate(bank.batches(batch_size=task.batch_size or session.settings.compute.batch_size)):
            task.test_step(batch, number)
    unknown = task.results()
    task.collected, task.seconds = collected, seconds
    for row in task.rows:
        logits = (found[row].double().numpy() for found in (known, unknown))
        task.trust[row] |= detection_measures(*logits, logit_scale=task.scorer.logit_scale)
    return {"ood": {"name": session.settings.config["ood"], "images": len(unknown["label"])}}
