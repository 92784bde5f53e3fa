"""What the record keeps of the logits of a row, which are numbers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multicrop.record import MOST_CLASSES, TOP, Scores


def check_numbers(row: str, logits: Float[Tensor, "images classes"]) -> None:
    """Raise ValueError where logits are NaN, of which argmax would make a prediction."""
    if count := int(logits.isnan().any(1).sum()):
        raise ValueError(
            f"{count} of {len(logits)} images have logits of the row {row} that are no numbers (NaN). Either features overflowed, and "
            "model.precision=fp32 helps, or a knob of the aggregator, adapter or method is too large or too small"
        )


def ranks(logits: Float[Tensor, "images classes"], label: Int[Tensor, " images"]) -> Int[Tensor, " images"]:
    """The number of classes with a higher logit than the label; at least 1 where the prediction is another class of the same logit."""
    higher = (logits > logits.gather(1, label[:, None])).sum(1)
    return torch.maximum(higher, (logits.argmax(1) != label).long())


def scores(logits: Float[Tensor, "images classes"], *, all_logits: bool = False) -> Scores:
    """What the record keeps of the logits of a row; the first of the best classes is the prediction."""
    best, total = logits.topk(min(TOP, logits.shape[1])), logits.logsumexp(1)
    predicted = logits.argmax(1, keepdim=True)
    classes = torch.where(best.indices == predicted, best.indices[:, :1], best.indices)
    classes[:, :1] = predicted
    whole = (logits - total[:, None]).half().numpy() if all_logits and logits.shape[1] <= MOST_CLASSES else None
    return Scores(classes.numpy(), best.values.numpy(), total.numpy(), whole)
