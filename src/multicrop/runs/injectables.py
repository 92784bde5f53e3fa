"""What the constructors of adapters and methods are given of a run, by the names of their parameters (`config.INJECTED`)."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TypeVar

from torch import Tensor

from multicrop.adapters.unprojected import visual_projection
from multicrop.aggregators.score import Scorer
from multicrop.config.signatures import INJECTED
from multicrop.encoder import Encoder
from multicrop.text import TextBank

Made = TypeVar("Made")


@dataclass(frozen=True)
class Injectables:
    """The parts of a run that an adapter or a method receives by name; the encoder is loaded on first use.

    Attributes:
        score: Class logits of views.
        load: Gives the encoder.
    """

    score: Scorer
    load: Callable[[], Encoder]

    @property
    def text(self) -> TextBank:
        """The encoded prompts."""
        return self.score.text

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosine similarities."""
        return self.score.logit_scale

    @property
    def encoder(self) -> Encoder:
        """The dual encoder."""
        return self.load()

    @property
    def projection(self) -> Tensor:
        """The visual projection of the encoder."""
        return visual_projection(self.encoder)


def inject(part: Callable[..., Made], injectables: Injectables | SimpleNamespace) -> Made:
    """What the constructor of an adapter or a method makes of the parts of a run that its parameters name.

    Args:
        part: The constructor, with its knobs bound.
        injectables: The parts of a run as attributes; only those that are named are read, because the encoder may have to be loaded.
    """
    names = inspect.signature(part).parameters
    return part(**{name: getattr(injectables, name) for name in INJECTED if name in names})
