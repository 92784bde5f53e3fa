"""How well a task's scores tell images of unknown classes (``ood``) from the scored ones."""

from typing import Any

import torch

from multicrop.compare.trust import detection_measures
from multicrop.runs.session import Session
from multicrop.runs.task import BankTask


def score_unknown(session: Session, task: BankTask) -> dict[str, Any]:
    """Score images of unknown classes after the stream of the others, and add AUROC and FPR95 of each row to ``task.trust``.

    Args:
        session: The parts of the run.
        task: The task after its stream; a test-time method goes on from its state, and what was collected stays as it is.

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
    return {"ood": {"name": session.settings.config["ood"], "images": len(unknown["label"])}}
