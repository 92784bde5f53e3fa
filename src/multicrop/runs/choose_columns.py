"""What the search keeps of the logits of settings: the columns of its table."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import softmax

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.base import fuse
from multicrop.aggregators.means import global_view
from multicrop.compare.label_free import mutual_information
from multicrop.compare.temperature import true_probability
from multicrop.runs.session import Session

COLUMNS = ("predictions", "probability", "information", "consistency", "gap")
Arrays = dict[str, np.ndarray]


def columns(
    logits: Float[torch.Tensor, "settings images classes"], labels: np.ndarray | None, *, consistency: np.ndarray, gap: float
) -> Arrays:
    """The columns of settings with the same crops.

    Args:
        logits: Class logits.
        labels: Label per image; None where labels are not read.
        consistency: Share of the images that two halves of the crops give the same class, per setting.
        gap: Mean entropy of the crops above that of the global view, nats.

    Returns:
        One row per setting in each column.
    """
    rows = logits.double().numpy()
    return {
        "predictions": logits.argmax(-1).numpy(),
        "probability": np.stack([np.zeros(len(row)) if labels is None else true_probability(row, labels) for row in rows]),
        "information": np.asarray([mutual_information(softmax(row, axis=-1)) for row in rows]),
        "consistency": consistency,
        "gap": np.full(len(rows), gap),
    }


@torch.inference_mode()
def fused_logits(session: Session, views: Views, *, weights: Sequence[float]) -> Float[torch.Tensor, "weights images classes"]:
    """The logits of a session's aggregator, fused with the global view's by each weight."""
    text, scale, aggregator = session.text, session.encoder.logit_scale, session.aggregator
    rows: list[list[Logits]] = [[] for _ in weights]
    for part in views.split(session.settings.compute.batch_size):
        whole, local = global_view(part, text, scale), aggregator(part, text, scale)
        for row, weight in zip(rows, weights, strict=True):
            row.append(fuse(whole, local, weight))
    return torch.stack([torch.cat(row) for row in rows])
