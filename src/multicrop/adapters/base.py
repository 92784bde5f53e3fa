"""What a few-shot adapter is, and the features that several adapters learn from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NotRequired, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from multicrop.aggregators import Logits, Views, pools, select_views
from multicrop.aggregators.score import Score
from multicrop.data.base import LabelledImages
from multicrop.encoder import Encoder
from multicrop.text import TextBank


@dataclass(frozen=True)
class Examples:
    """Labelled views with their zero-shot logits.

    Attributes:
        views: Unit-norm view features, shape (n, views, dim); view 0 is the global view.
        logits: Class logits of the aggregator, shape (n, classes).
        labels: Class positions, shape (n,).
    """

    views: Float[Tensor, "n views dim"]
    logits: Float[Tensor, "n classes"]
    labels: Int[Tensor, " n"]


class Selection(TypedDict):
    """The record of how an adapter's hyper-parameters were selected.

    Attributes:
        how: ``"validation"``, or ``"fixed"`` if there was one candidate.
        images: Number of validation images.
        chosen: The selected point of `curve`.
        curve: Hyper-parameters (or the number of the epoch or iteration) and validation accuracy (0-1) of each candidate.
        fit_seconds: Wall-clock seconds of the fit, added by the task.
    """

    how: Literal["fixed", "validation"]
    images: int
    chosen: dict[str, float | int]
    curve: list[dict[str, float | int]]
    fit_seconds: NotRequired[float]


class FewShotAdapter(ABC):
    """What a task may ask of any few-shot adapter.

    Attributes:
        tunes_encoder: Whether `fit` learns from pixels and returns a changed encoder (`EncoderAdapter`) or from features (`Adapter`).
        needs_text_tower: Whether the constructor takes `encoder` and the fit needs gradients through its text tower.
        reads_unprojected: Whether it reads views before the visual projection, its argument `projection`; logits are of projected views.
        selection: How the hyper-parameters were selected; set by `fit`.
        checkpoint: The file in which `fit` keeps its state, so that an interrupted fit resumes; None keeps none.
        progress: Whether `fit` shows a progress bar.
    """

    tunes_encoder: ClassVar[bool]
    needs_text_tower: ClassVar[bool] = False
    reads_unprojected: ClassVar[bool] = False
    selection: Selection
    checkpoint: Path | None = None
    progress: bool = False

    @property
    def reads_other_features(self) -> bool:
        """Whether it reads features of another encoder than the run's: of the one that it changes, or of that before its projection."""
        return self.tunes_encoder or self.reads_unprojected

    @property
    def class_free(self) -> bool:
        """Whether what `fit` learns is of no class, so that it holds for classes without support images."""
        return False


class Adapter(nn.Module, FewShotAdapter):
    """A few-shot adapter that maps views and zero-shot logits to adapted logits.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        score: The run's aggregator, fused with the global view.
    """

    tunes_encoder: ClassVar[Literal[False]] = False

    def __init__(self, *, text: TextBank, logit_scale: float, score: Score) -> None:
        super().__init__()
        self.text, self.logit_scale, self.score = text, logit_scale, score

    @abstractmethod
    def fit(self, support: Examples, validation: Examples) -> None:
        """Learn from the support set and set `selection`.

        Args:
            support: The labelled training images.
            validation: Images for the selection of hyper-parameters, disjoint from the support set and from the test images.
        """

    @abstractmethod
    def forward(self, views: Views, logits: Logits) -> Logits:
        """Compute the adapted logits.

        Args:
            views: Unit-norm view features, shape (batch, views, dim).
            logits: Zero-shot logits of the same images, shape (batch, classes).

        Returns:
            Adapted logits, shape (batch, classes).
        """

    def learned_tensors(self) -> dict[str, Tensor]:
        """Return what `fit` learned as tensors by name, for a file; `restore` reads them."""
        own = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False), *vars(self).items()]
        return {name: value.detach() for name, value in own if isinstance(value, Tensor)}

    def restore(self, learned: Mapping[str, Tensor], chosen: Mapping[str, float | int]) -> None:
        """Take the place of a fit.

        Args:
            learned: What `learned_tensors` of the fitted adapter returned.
            chosen: The hyper-parameters that its `selection` chose.
        """
        parameters = dict(self.named_parameters(recurse=False))
        for name, value in learned.items():
            setattr(self, name, nn.Parameter(value) if name in parameters else value)
        self.selection = {"how": "fixed", "images": 0, "chosen": dict(chosen), "curve": []}


class EncoderAdapter(FewShotAdapter):
    """A few-shot adapter that changes the encoder and so learns from pixels.

    The test images are encoded by both encoders; the run's aggregator scores both.
    """

    tunes_encoder: ClassVar[Literal[True]] = True

    def encode_prompts(self, encoder: Encoder, prompts: list[list[str]], rows: Sequence[int | None]) -> TextBank:
        """Encode prompts as the fit left them.

        Args:
            encoder: What `fit` returned.
            prompts: Prompts per class, label prompt first.
            rows: The class of the support set that each class is, or None for a class that is none of them.

        Returns:
            The text bank.
        """
        return encoder.encode_prompts(prompts)

    @property
    def class_free(self) -> bool:
        """True: the changed encoder encodes the prompts of any class."""
        return True

    @abstractmethod
    def fit(self, support: LabelledImages, validation: LabelledImages) -> Encoder:
        """Learn from the support set and set `selection`.

        Args:
            support: The labelled training images.
            validation: Images whose accuracy is reported in `selection`.

        Returns:
            The changed encoder; the encoder that the constructor received stays as it is.
        """


AnyAdapter = Adapter | EncoderAdapter


def pooled(views: Views, view_set: str) -> Float[Tensor, "batch dim"]:
    """Return the normalised mean of the views in `view_set` (``"all"`` or ``"crops"``), one unit-norm feature per image."""
    return pools.mean(select_views(views, view_set))


def samples(support: Examples, view_set: str, unit: str) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    """Return the features and labels to learn from.

    Args:
        support: The labelled training images.
        view_set: ``"all"`` or ``"crops"``.
        unit: ``"images"`` for one pooled feature per image, ``"views"`` for every view as a sample of its own.

    Returns:
        Unit-norm features, shape (samples, dim), and their labels, shape (samples,).

    Raises:
        ValueError: If `unit` is neither.
    """
    if unit not in ("images", "views"):
        raise ValueError(f"adapter.samples is images (pooled views) or views (each view a sample), got {unit!r}")
    if unit == "images":
        return pooled(support.views, view_set), support.labels
    chosen = select_views(support.views, view_set)
    return chosen.flatten(0, 1), support.labels.repeat_interleave(chosen.shape[1])


def class_sums(
    x: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], n_classes: int
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, "classes 1"]]:
    """Return the sum of each class's samples, shape (classes, dim), and their number, shape (classes, 1).

    Raises:
        ValueError: If a class has no sample.
    """
    count = torch.bincount(labels, minlength=n_classes).to(x.dtype)[:, None]
    if empty := (count[:, 0] == 0).nonzero()[:, 0].tolist():
        raise ValueError(
            f"the adapter needs at least one readable support image per class; {len(empty)} of {n_classes} classes have none, "
            f"at positions {empty[:3]}. Replace unreadable images, raise task.shots, or use adapter=tip_adapter, which works without"
        )
    return x.new_zeros(n_classes, x.shape[1]).index_add(0, labels, x), count
