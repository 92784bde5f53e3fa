"""How well a task's scores tell images of unknown classes (``ood``) from the scored ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multicrop.compare.trust import detection_measures, detection_scores
from multicrop.data.base import LabelledImages
from multicrop.record import Detection
from multicrop.runs.session import Session
from multicrop.runs.task import BankTask


def score_unknown(session: Session, task: BankTask, scored: LabelledImages) -> dict[str, Any]:
    """Score images of unknown classes after the stream of the others.

    AUROC and FPR95 of each row are added to ``task.trust``, the scores of all images are kept as ``task.detection``.

    Args:
        session: The parts of the run.
        task: The task after its stream; a test-time method continues from its state, and what was collected stays as it is.
        scored: The images of that stream.

    Returns:
        The data set and the number of images of unknown classes, for the record; empty where the configuration names none.
    """
    if (images := session.unknown_images) is None:
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
    task.detection = _detection(task, [(known, scored), (unknown, bank.images)])
    return {"ood": {"name": session.settings.config["ood"], "images": len(unknown["label"])}}


def _detection(task: BankTask, parts: Sequence[tuple[Mapping[str, Tensor], LabelledImages]]) -> Detection:
    """The detection scores of each row; parts: results and images of the known, then of the unknown classes."""
    ids, clusters = [], []
    for found, images in parts:
        order = found["index"].tolist()
        ids += [images.ids[i] for i in order]
        clusters += [images.clusters[i] for i in order] if images.clusters else [""] * len(order)
    logits = {row: np.concatenate([found[row].double().numpy() for found, _ in parts]) for row in task.rows}
    scores = {row: detection_scores(values, logit_scale=task.scorer.logit_scale) for row, values in logits.items()}
    n_known = len(parts[0][0]["label"])
    return Detection(ids, clusters, np.arange(len(ids)) < n_known, scores)
