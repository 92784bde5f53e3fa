"""What a few-shot adapter is: fitted on a labelled support set, selected on validation images, then a function of views and logits."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from multicrop.aggregators import Logits, Views


@dataclass(frozen=True)
class Examples:
    """Labelled views, and the class logits that the aggregator gives them."""

    views: Float[Tensor, "n views dim"]
    logits: Float[Tensor, "n classes"]
    labels: Int[Tensor, " n"]


class Adapter(nn.Module):
    """`fit` learns from the support set and chooses its hyper-parameters on the validation set; `selection` says how."""

    selection: dict[str, object]

    def fit(self, support: Examples, validation: Examples) -> None:
        """Learn; test images are nowhere near."""
        raise NotImplementedError

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Adapted class logits of views whose text logits are `logits`."""
        raise NotImplementedError
