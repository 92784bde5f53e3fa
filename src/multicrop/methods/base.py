"""What a test-time method is: it sees the views and text logits of the stream, image after image, and may keep state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from multicrop.aggregators import Logits, Views, select_views
from multicrop.text import TextBank


class Method(nn.Module):
    """Buffers hold the state, so that `state_dict` saves a stream in the middle and `load_state_dict` resumes it.

    Every method is made with the text bank and the logit scale of the run, and with its `encoder` and its `score` where the constructor
    names them; `logits` are the fused logits of the aggregator (D&D where
    that is the transport plan), which methods take as text logits and as the source of entropies and pseudo-labels.
    """

    def __init__(self, *, text: TextBank, logit_scale: float) -> None:
        super().__init__()
        self.text, self.logit_scale = text, logit_scale

    def reset(self) -> None:
        """Forget the stream; a method that keeps no state has nothing to forget."""

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Adapted logits of the next images of the stream, in order; but for rounding, the result does not depend on the batches."""
        raise NotImplementedError

    @property
    def state_bytes(self) -> int:
        """The memory that the state takes; it does not grow with the stream."""
        return sum(value.numel() * value.element_size() for value in self.state_dict().values())

    def view_logits(self, views: Float[Tensor, "*batch views dim"]) -> Float[Tensor, "*batch views classes"]:
        """Logits of each view alone, against the label prompts."""
        return self.logit_scale * views @ self.text.label.T


@contextmanager
def learning() -> Iterator[None]:
    """Gradients within Lightning's test loop, which is in inference mode; tensors that come from it are to be cloned in here first."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def chosen_views(views: Views, view_set: str) -> Float[Tensor, "batch chosen dim"]:
    """The global view, all views, or the crops (the global view where there are none); raises ValueError for another `view_set`."""
    if view_set not in ("global", "all", "crops"):
        raise ValueError(f"method.view_set is global, all or crops, got {view_set!r}")
    return views[:, :1] if view_set == "global" else select_views(views, view_set)


def entropy(probability: Float[Tensor, "*batch classes"]) -> Float[Tensor, " *batch"]:
    """Entropy in nats."""
    return -(probability * probability.clamp_min(1e-12).log()).sum(-1)


def by_confidence(logits: Float[Tensor, "*batch views classes"]) -> Int[Tensor, "*batch views"]:
    """Views from the lowest entropy to the highest; equal ones in the order of the crops."""
    return entropy(logits.softmax(-1)).argsort(dim=-1, stable=True)
