"""What a few-shot adapter is: it learns on a support set, is selected on validation images, then maps views and logits to logits."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.aggregators import Logits, Views, pools, select_views
from multicrop.aggregators.score import Score
from multicrop.data.base import LabelledImages
from multicrop.encoder import Encoder
from multicrop.text import TextBank

Search = Mapping[str, Sequence[float | int]] | None


@dataclass(frozen=True)
class Examples:
    """Labelled views, and the class logits that the aggregator gives them."""

    views: Float[Tensor, "n views dim"]
    logits: Float[Tensor, "n classes"]
    labels: Int[Tensor, " n"]


class LongFit:
    """What may take long: `checkpoint` is the file in which a fit keeps its state, so that a killed one goes on; `progress` shows a bar."""

    checkpoint: Path | None = None
    progress: bool = False

    @property
    def keeping(self) -> dict[str, object]:
        """Both, as `training` takes them."""
        return {"checkpoint": self.checkpoint, "progress": self.progress}


class Adapter(nn.Module, LongFit):
    """`fit` learns from the support set and may choose hyper-parameters on the validation set; `selection` says how."""

    selection: dict[str, object]

    def __init__(self, *, text: TextBank, logit_scale: float, score: Score) -> None:
        super().__init__()
        self.text, self.logit_scale, self.score, self.selection = text, logit_scale, score, {}

    def fit(self, support: Examples, validation: Examples) -> None:
        """Learn; test images are nowhere near."""
        raise NotImplementedError

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Adapted class logits of views whose text logits are `logits`."""
        raise NotImplementedError


class Selected(Adapter):
    """An adapter that first learns, and whose `knobs` are then chosen on the validation images from `search`, or stay as given.

    `search` lists the values of each knob that is searched; without it the knobs are fixed. A weight of 0 among them keeps an adapter from
    ending below the aggregator's own accuracy on the validation images.
    """

    def __init__(self, *, score: Score, search: Search, **knobs: float | int) -> None:
        super().__init__(text=score.text, logit_scale=score.logit_scale, score=score)
        self.knobs, self.candidates = knobs, grid(knobs, search)

    def learn(self, support: Examples) -> None:
        """Learn from the support set, at the knobs as they were given."""
        raise NotImplementedError

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """The adapted logits as a function of the knobs; what does not depend on them is computed once."""
        raise NotImplementedError

    def fit(self, support: Examples, validation: Examples) -> None:
        """Learn, then choose the knobs."""
        self.learn(support)
        with torch.no_grad():
            self.selection = select(self.candidates, self.adapted(validation.views, validation.logits), validation)
        self.knobs = {name: self.selection["chosen"][name] for name in self.knobs}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The adapted logits at the chosen knobs."""
        return self.adapted(views, logits)(**self.knobs)


class EncoderAdapter(LongFit):
    """An adapter that changes the encoder itself and so learns from pixels: `fit` gives the changed encoder, `selection` says how.

    The test images are then seen by both encoders, and scored by the run's aggregator.
    """

    selection: dict[str, object]

    def fit(self, support: LabelledImages, validation: LabelledImages) -> Encoder:
        """Learn; test images are nowhere near. The encoder that it was made with stays as it is."""
        raise NotImplementedError


def pooled(views: Views, view_set: str) -> Float[Tensor, "batch dim"]:
    """One unit feature an image: the normalised mean of the chosen views."""
    return pools.mean(select_views(views, view_set))


def samples(support: Examples, view_set: str, unit: str) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    """Features and labels to learn from: one pooled feature an image (`images`), or every chosen view by itself (`views`)."""
    if unit not in ("images", "views"):
        raise ValueError(f"adapter.samples is images (pooled) or views (each by itself), got {unit!r}")
    if unit == "images":
        return pooled(support.views, view_set), support.labels
    chosen = select_views(support.views, view_set)
    return chosen.flatten(0, 1), support.labels.repeat_interleave(chosen.shape[1])


def class_sums(x: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], n_classes: int) -> tuple[Float[Tensor, "classes dim"], Tensor]:
    """Sum of each class's members and their numbers (classes, 1); raises ValueError when a class has none."""
    count = torch.bincount(labels, minlength=n_classes).to(x.dtype)[:, None]
    if empty := (count[:, 0] == 0).nonzero()[:, 0].tolist():
        raise ValueError(
            f"the adapter needs one readable support image a class or more; {len(empty)} of {n_classes} classes have none, "
            f"at positions {empty[:3]}. Mend the images, raise task.shots, or use adapter=tip_adapter, which does without"
        )
    return x.new_zeros(n_classes, x.shape[1]).index_add(0, labels, x), count


def accuracy(logits: Logits, labels: Int[Tensor, " batch"]) -> float:
    """Top-1, in 0-1."""
    return (logits.argmax(1) == labels).float().mean().item()


def grid(knobs: Mapping[str, float | int], search: Search) -> list[dict[str, float | int]]:
    """The candidates: every combination of the searched values, the others as given; the knobs alone where nothing is searched.

    Raises ValueError for a searched knob that the adapter does not have, and for a list of values that is empty or has one below 0.
    """
    values = {name: list(search[name]) if search and name in search else [knob] for name, knob in knobs.items()}
    if unknown := sorted(set(search or {}) - set(knobs)):
        raise ValueError(f"adapter.search lists {', '.join(unknown)}, which this adapter does not choose; it chooses {', '.join(knobs)}")
    for name, some in values.items():
        if not some or min(some) < 0:
            raise ValueError(f"adapter.{name} and adapter.search.{name} are one or more values of 0 or above, got {some}")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


@torch.no_grad()
def select(candidates: Iterable[dict[str, float | int]], logits: Callable[..., Logits], validation: Examples) -> dict[str, object]:
    """The record of a choice among hyper-parameters: `chosen` gets most validation images right; ties go to the lowest cross entropy.

    `logits` gives the validation logits under the hyper-parameters of one candidate. A single candidate is `fixed`.
    """
    curve = []
    for knobs in candidates:
        values = logits(**knobs)
        loss = F.cross_entropy(values, validation.labels).item()
        curve.append({**knobs, "accuracy": accuracy(values, validation.labels), "loss": loss})
    best = max(curve, key=lambda point: (point["accuracy"], -point["loss"]))
    return {"how": "validation" if len(curve) > 1 else "fixed", "images": len(validation.labels), "chosen": best, "curve": curve}
