"""Selection of an adapter's hyper-parameters on validation images."""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from multicrop.adapters.base import Adapter, Examples, Selection
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Weight

Knobs = dict[str, float | int]
Search = Mapping[str, Sequence[Weight]] | None


class SelectedAdapter(Adapter):
    """An adapter that first learns at fixed hyper-parameters and then selects them on the validation images.

    Args:
        score: The run's aggregator, fused with the global view.
        search: The values to try of each hyper-parameter; a hyper-parameter that is not listed, or all without `search`, stay fixed. A
            weight of 0 among the values keeps the adapter from ending below the aggregator's own validation accuracy.
        **knobs: The hyper-parameters that may be searched, at the values at which the adapter learns.

    Raises:
        ValueError: If `search` lists another hyper-parameter, no value, or a value below 0.
    """

    def __init__(self, *, score: Score, search: Search, **knobs: float | int) -> None:
        super().__init__(text=score.text, logit_scale=score.logit_scale, score=score)
        self.knobs, self.candidates = knobs, grid(knobs, search)

    @abstractmethod
    def learn(self, support: Examples) -> None:
        """Learn from the support set, with the hyper-parameters at their fixed values."""

    @abstractmethod
    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return the adapted logits as a function of the hyper-parameters; what does not depend on them is computed once."""

    def fit(self, support: Examples, validation: Examples) -> None:
        """Learn from the support set, then select the hyper-parameters on the validation images."""
        self.learn(support)
        with torch.no_grad():
            self.selection = select(self.candidates, self.adapted(validation.views, validation.logits), validation)
        self.knobs = {name: self.selection["chosen"][name] for name in self.knobs}

    def restore(self, learned: Mapping[str, Tensor], chosen: Mapping[str, float | int]) -> None:
        """Take the place of a fit, with its selected hyper-parameters."""
        super().restore(learned, chosen)
        self.knobs = {name: chosen[name] for name in self.knobs}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Compute the adapted logits, shape (batch, classes), with the selected hyper-parameters."""
        return self.adapted(views, logits)(**self.knobs)


def accuracy(logits: Logits, labels: Int[Tensor, " batch"]) -> float:
    """Return the top-1 accuracy in 0-1."""
    return (logits.argmax(1) == labels).float().mean().item()


def grid(knobs: Mapping[str, float | int], search: Search) -> list[Knobs]:
    """List the candidates: all combinations of the searched values, with the other hyper-parameters fixed.

    Args:
        knobs: Hyper-parameters and their fixed values.
        search: Values to try of some hyper-parameters, or None.

    Returns:
        One dictionary per candidate; `knobs` alone if nothing is searched.

    Raises:
        ValueError: If `search` lists a hyper-parameter that is not in `knobs`, no value, or a value below 0.
    """
    values = {name: list(search[name]) if search and name in search else [knob] for name, knob in knobs.items()}
    if unknown := sorted(set(search or {}) - set(knobs)):
        raise ValueError(
            f"adapter.search lists {', '.join(unknown)}, which this adapter does not select; remove it, or search {', '.join(knobs)}"
        )
    for name, some in values.items():
        if not some or min(some) < 0:
            raise ValueError(f"adapter.{name} and adapter.search.{name} are one or more values of 0 or above, got {some}")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


@torch.no_grad()
def select(candidates: Iterable[Knobs], logits: Callable[..., Logits], validation: Examples) -> Selection:
    """Select the candidate with the highest validation accuracy; ties go to the lowest cross entropy, then to the first.

    Args:
        candidates: Hyper-parameters to compare; a single candidate is recorded as ``"fixed"``.
        logits: Validation logits, shape (n, classes), as a function of the hyper-parameters of a candidate.
        validation: The validation images.

    Returns:
        The record of the selection; each point of its curve also has the cross entropy in nats as ``loss``.
    """
    curve = []
    for knobs in candidates:
        values = logits(**knobs)
        loss = F.cross_entropy(values, validation.labels).item()
        curve.append({**knobs, "accuracy": accuracy(values, validation.labels), "loss": loss})
    best = max(curve, key=lambda point: (point["accuracy"], -point["loss"]))
    return {"how": "validation" if len(curve) > 1 else "fixed", "images": len(validation.labels), "chosen": best, "curve": curve}


def held_out(examples: Examples, *, share: float | int, seed: int) -> tuple[Examples, Examples]:
    """Divide labelled images into support and validation images, both with the classes in equal shares.

    Args:
        examples: The images.
        share: Share of the validation images.
        seed: Seed of the draw.

    Returns:
        Support and validation images; no validation images where either part would lack a class.
    """
    labels, classes = examples.labels.numpy(), examples.logits.shape[1]
    held = round(share * len(labels))
    if min(held, len(labels) - held) < classes or np.bincount(labels, minlength=classes).min() < 2:
        return examples, _rows(examples, np.arange(0))
    support, validation = train_test_split(np.arange(len(labels)), test_size=held, stratify=labels, random_state=seed)
    return _rows(examples, np.sort(support)), _rows(examples, np.sort(validation))


def _rows(examples: Examples, rows: np.ndarray) -> Examples:
    chosen = torch.from_numpy(rows)
    return Examples(examples.views[chosen], examples.logits[chosen], examples.labels[chosen])
