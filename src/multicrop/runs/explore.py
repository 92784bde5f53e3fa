"""Explorer: what a configuration answers for a photo once crops, fusion weight or prompts are changed; the model of `multicrop explore`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from multicrop.data.base import open_bytes
from multicrop.runs.explain import encoded_views
from multicrop.runs.predictor import Predictor
from multicrop.runs.session import Session
from multicrop.show.explain.explanation import Explanation, explain
from multicrop.text import TextBank

SIZES = (("min_side", "max_side"), ("min_area", "max_area"))  # knobs of crop policies: smallest and largest crop
Encoded = tuple[Float[Tensor, "views dim"], Float[Tensor, "views 4"]]


@dataclass(frozen=True)
class Controls:
    """What one can change.

    Args:
        n_crops: Crops per image; None where the crop policy has no such knob.
        size: Smallest and largest crop, as shares of the image's shorter side or area; None where the crop policy has no such knobs.
        fusion_weight: 0 (global view only) to 1 (aggregator only).
        prompts: The prompts of classes that were edited, label prompt first.
    """

    n_crops: int | None
    size: tuple[float, float] | None
    fusion_weight: float
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Photo:
    """An RGB image, whose name keys its crops, and its encoded views by size of crop."""

    name: str
    image: Image.Image
    encoded: dict[object, Encoded] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """Why a photo gets its class with changed controls, and the probabilities of all classes as configured and with the changes."""

    explanation: Explanation
    before: Float[Tensor, " classes"]
    now: Float[Tensor, " classes"]


class Explorer:
    """Answers for photos with changed controls, by the parts of a predictor.

    Args:
        predictor: What classifies as configured. An adapter stays as it was fitted, whatever the controls.

    Attributes:
        configured: The controls of the configuration.
        class_names: Names of the classes.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.session, self.class_names = predictor, predictor.session, predictor.class_names
        crop = self.session.settings.config["crop"]
        self._sizes = next((names for names in SIZES if all(crop.get(name) is not None for name in names)), None)
        size = None if self._sizes is None else (float(crop[self._sizes[0]]), float(crop[self._sizes[1]]))
        self.configured = Controls(crop.get("n_crops"), size, float(self.session.settings.task["fusion_weight"]))
        self._rows: dict[tuple[str, ...], TextBank] = {}

    def prompts(self, class_name: str) -> list[str]:
        """The prompts of a class as configured, label prompt first."""
        return self.session.text.prompts[self.class_names.index(class_name)]

    def photo(self, name: str, data: bytes) -> Photo:
        """Decode an image file; raises ImageError."""
        return Photo(name, open_bytes(data, name))

    @torch.inference_mode()
    def answer(self, photo: Photo, controls: Controls) -> Answer:
        """Classify and explain a photo.

        Args:
            photo: The photo; its views are encoded once per size of crop, where fewer crops are the first of more.
            controls: What is changed.

        Returns:
            The explanation, and the probabilities as configured and with the changes.

        Raises:
            ValueError: If a value is out of its range, a class is left without a prompt that the aggregator reads, or there is one class.
        """
        if len(self.class_names) < 2:
            raise ValueError(f"an explanation compares two classes, and this configuration has {len(self.class_names)}; take another")
        predictor = self._predictor(controls)
        views, boxes = self._views(photo, predictor.session)
        logits = predictor.logits(views[None])[0]
        how: dict[str, Any] = {"name": photo.name, "open_image": lambda: photo.image, "logits": logits}
        item = explain(predictor.scorer, views, boxes, self.class_names, temperature=predictor.temperature, **how)
        before = self.predictor.logits(self._views(photo, self.session)[0][None])[0]
        return Answer(item, *((row / predictor.temperature).softmax(0) for row in (before, logits)))

    def _predictor(self, controls: Controls) -> Predictor:
        """The predictor with the changes."""
        crop: dict[str, Any] = {} if controls.n_crops is None else {"n_crops": controls.n_crops}
        if self._sizes is not None and controls.size is not None:
            crop |= dict(zip(self._sizes, controls.size, strict=True))
        session = self.session.with_knobs(crop, controls.fusion_weight, self._text(controls.prompts))
        return Predictor(session, self.predictor.adapter, self.predictor.temperature)

    def _text(self, edited: Mapping[str, Sequence[str]]) -> TextBank:
        """The encoded prompts, with those of edited classes in their place."""
        bank = self.session.text
        for name, texts in edited.items():
            known = {str(prompt): prompt for prompt in self.prompts(name)}  # a mean of several texts stays one
            row = [known.get(text, text) for text in texts]
            if not row:
                raise ValueError(f"{name} has no prompt; write one per line, the label prompt first")
            if tuple(row) not in self._rows:
                self._rows[tuple(row)] = self.session.encoder.encode_prompts([row])
            bank = bank.with_class(self.class_names.index(name), self._rows[tuple(row)])
        return bank

    def _views(self, photo: Photo, session: Session) -> Encoded:
        """Features and boxes of the views, from those of more crops where these begin with the same."""
        sampler = session.sampler
        key = sampler.identity if sampler.nested else (sampler.identity, sampler.n_crops)
        if key not in photo.encoded or len(photo.encoded[key][1]) < sampler.n_views:
            photo.encoded[key] = encoded_views(session, photo.name, photo.image)
        views, boxes = photo.encoded[key]
        return views[: sampler.n_views], boxes[: sampler.n_views]
