"""What is known of an encoder without its weights in memory, and an encoder that is loaded when it is called for."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from multicrop.crops.pixels import PixelSpec
from multicrop.encoder.dual import Encoder


@dataclass(frozen=True)
class EncoderFacts:
    """What decides features, texts and logits of an encoder, and what a record says of it.

    Attributes:
        name: The name of the model.
        architecture: The class of the model.
        parameters: The number of parameters.
        weights: A hash of the weights.
        precision: The precision of the image tower.
        fingerprint: A hash of all that can change a feature.
        tokens: A hash of how texts are cut into tokens.
        logit_scale: Multiplier of cosine similarities.
        spec: What happens to pixels.
    """

    name: str
    architecture: str
    parameters: int
    weights: str
    precision: str
    fingerprint: str
    tokens: str
    logit_scale: float
    spec: PixelSpec

    @property
    def key(self) -> tuple[str, str]:
        """What decides features of views and of texts."""
        return self.fingerprint, self.tokens

    @classmethod
    def of(cls, encoder: Encoder) -> "EncoderFacts":
        """The facts of a loaded encoder."""
        return cls(
            name=encoder.name,
            architecture=type(encoder.model).__name__,
            parameters=sum(value.numel() for value in encoder.model.parameters()),
            weights=encoder.weights_hash(),
            precision=encoder.precision,
            fingerprint=encoder.fingerprint(),
            tokens=encoder.tokens_hash(),
            logit_scale=encoder.logit_scale,
            spec=encoder.spec,
        )

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "EncoderFacts":
        """The facts that `to_json` gave."""
        spec = PixelSpec(**{name: tuple(value) if isinstance(value, list) else value for name, value in values["spec"].items()})
        return cls(**{**values, "spec": spec})


@dataclass(frozen=True)
class LazyEncoder:
    """An encoder whose facts are known, and which is made when it is needed.

    Attributes:
        facts: What is known of it.
        make: Makes it in this process.
        elsewhere: Makes it in another process, which gets this function pickled; None where it cannot be made again from its files.
    """

    facts: EncoderFacts
    make: Callable[[], Encoder]
    elsewhere: Callable[[], Encoder] | None = None

    @classmethod
    def of(cls, encoder: Encoder) -> "LazyEncoder":
        """A loaded encoder as a lazy one."""
        return cls(EncoderFacts.of(encoder), lambda: encoder)

    def load(self) -> Encoder:
        """The encoder, whose weights are those that the facts are of.

        Raises:
            ValueError: If a file of the model was changed since the facts were read.
        """
        encoder = self.make()
        if encoder.fingerprint() != self.facts.fingerprint:
            raise ValueError(f"files of the model {self.facts.name} were changed while this run read them; run it again")
        return encoder
