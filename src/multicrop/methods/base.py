"""What a test-time method is, and the choice of views and their entropies that several methods need."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from multicrop.aggregators import Logits, Views, pools, select_views
from multicrop.aggregators.confidence import kept_views
from multicrop.text import TextBank


class Method(nn.Module, ABC):
    """A test-time method: it receives the views and logits of the stream in order, and may keep state between images.

    Buffers hold the state of the stream, so `state_dict` saves it at any image and `load_state_dict` resumes it. A subclass whose
    constructor names `encoder` or `score` receives the run's as well.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.

    Attributes:
        episodic: Whether the result for an image is independent of the other images of the stream; every method sets it. A method that is
            neither episodic nor transductive is online: it has a state, which `reset` clears.
        transductive: Whether the images of a batch are adapted together, without a state between batches. The task then hands over batches
            of `task.images_per_batch` images, which are part of the result.
        uses_gradients: Whether the method follows gradients of the aggregator's logits.
        needs_text_tower: Whether the constructor takes `encoder` and gradients go through its text tower.
    """

    episodic: ClassVar[bool]
    transductive: ClassVar[bool] = False
    uses_gradients: ClassVar[bool] = False
    needs_text_tower: ClassVar[bool] = False

    def __init__(self, *, text: TextBank, logit_scale: float) -> None:
        super().__init__()
        self.text, self.logit_scale = text, logit_scale

    def reset(self) -> None:
        """Return to the state before the first image; does nothing for an episodic method."""

    @abstractmethod
    def forward(self, views: Views, logits: Logits) -> Logits:
        """Compute the adapted logits of the next images of the stream, and update the state.

        Args:
            views: Unit-norm view features, shape (batch, views, dim), in the order of the stream.
            logits: Fused logits of the aggregator for the same images, shape (batch, classes): the method's text logits, and its source of
                entropies and pseudo-labels.

        Returns:
            Adapted logits, shape (batch, classes). Up to rounding they do not depend on how the stream is split into batches, unless the
            method is transductive.
        """

    @property
    def state_bytes(self) -> int:
        """Memory of the state in bytes; it does not grow with the stream, and is 0 for an episodic method."""
        return sum(value.numel() * value.element_size() for value in self.state_dict().values())

    def view_logits(self, views: Float[Tensor, "*batch views dim"]) -> Float[Tensor, "*batch views classes"]:
        """Return the logits of each view against the label prompts, shape (..., views, classes)."""
        return self.logit_scale * views @ self.text.label.T

    def confident_views(self, views: Float[Tensor, "views dim"], share: float) -> "ConfidentViews":
        """Select the most confident views of one image, by their label-prompt logits.

        Args:
            views: View features, shape (views, dim).
            share: Share of the views that is kept, lowest entropy first: max(1, floor(views * share)).
        """
        logits = self.view_logits(views)
        kept = by_confidence(logits)[: kept_views(len(views), share)]
        return ConfidentViews(views[kept], logits[kept])


class OneKeyMethod(Method):
    """An online method that reads an image as the mean of its views, its key; a subclass says what it makes of one image.

    Attributes:
        view_set: The views whose mean is the key, ``"global"``, ``"all"`` or ``"crops"``.
    """

    episodic: ClassVar[bool] = False
    view_set: str

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Score the images one after the other, and update the state with each."""
        keys = pools.mean(chosen_views(views, self.view_set))
        return torch.stack([self.one(key, text) for key, text in zip(keys, logits, strict=True)])

    @abstractmethod
    def one(self, key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        """Compute the adapted logits of one image, and update the state.

        Args:
            key: The normalised mean of its views, shape (dim,).
            logits: Its fused logits, shape (classes,).

        Returns:
            Adapted logits, shape (classes,).
        """


class ConfidentViews(NamedTuple):
    """The most confident views of one image, and their label-prompt logits."""

    features: Float[Tensor, "kept dim"]
    logits: Float[Tensor, "kept classes"]


@contextmanager
def learning() -> Iterator[None]:
    """Enable gradients within Lightning's test loop, which is in inference mode; clone tensors from outside before use."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def chosen_views(views: Views, view_set: str) -> Float[Tensor, "batch chosen dim"]:
    """Select views by name.

    Args:
        views: View features, shape (batch, views, dim); view 0 is the global view.
        view_set: ``"global"``, ``"all"`` or ``"crops"`` (the global view if there are no crops).

    Returns:
        The selected views, shape (batch, selected, dim).

    Raises:
        ValueError: For another `view_set`.
    """
    if view_set not in ("global", "all", "crops"):
        raise ValueError(f"method.view_set is global, all or crops, got {view_set!r}")
    return views[:, :1] if view_set == "global" else select_views(views, view_set)


def entropy(probability: Float[Tensor, "*batch classes"]) -> Float[Tensor, " *batch"]:
    """Return the entropy in nats, shape (...), of probabilities (..., classes)."""
    return -(probability * probability.clamp_min(1e-12).log()).sum(-1)


def by_confidence(logits: Float[Tensor, "*batch views classes"]) -> Int[Tensor, "*batch views"]:
    """Return the positions of the views from the lowest entropy to the highest, shape (..., views); ties keep the order of the views."""
    return entropy(logits.softmax(-1)).argsort(dim=-1, stable=True)
