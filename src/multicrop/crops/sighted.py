"""Samplers that look at the image: what they are shown, and how an encoder gives them eyes (multicrop.encoder.sighted).

Such a sampler is a function like any other with a knob `view`, marked by `looks_at`: "attention" (it draws where the model looks) or
"tokens" (its boxes are cut from the model's token grid, not from pixels). Box j still depends on the seed, the image id, j and the
image only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from multicrop.crops.base import CropSampler


@dataclass(frozen=True)
class GlobalView:
    """What the model's global view shows of an image: `rectangle` (left, top, right, bottom) in its pixels, and who is attended to."""

    rectangle: tuple[float, float, float, float]
    attention: Float[Tensor, "rows columns"] | None = None


class Sighted:
    """A sampler bound to what looks at the image for it; `at` gives the sampler of one image.

    Called as it is, without an image, it draws as for an image that is shown whole and holds the eye nowhere: good for counting views.
    """

    def __init__(self, sampler: CropSampler, look: Callable[[Tensor], GlobalView]) -> None:
        self.sampler, self.look = sampler, look

    @property
    def func(self) -> CropSampler:
        """The function of the policy, as functools.partial has it."""
        return getattr(self.sampler, "func", self.sampler)

    @property
    def keywords(self) -> dict:
        """The knobs, and who looks."""
        return {**getattr(self.sampler, "keywords", {}), "look": self.look}

    def __call__(self, height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "crops 4"]:
        """Boxes without looking."""
        return self.sampler(height, width, image_id, seed)

    def at(self, image: Tensor) -> CropSampler:
        """The sampler of this image, uint8 (3,height,width)."""
        return partial(self.sampler, view=self.look(image))


def looks_at(sampler: CropSampler) -> str | None:
    """What of the image the sampler looks at: "attention", "tokens", or nothing."""
    return getattr(getattr(sampler, "func", sampler), "looks_at", None)


def at_image(sampler: CropSampler, image: Tensor) -> CropSampler:
    """The sampler of one image, uint8 (3,height,width).

    Raises ValueError when it wants to look at the image and was given no eyes.
    """
    if looks_at(sampler) is None:
        return sampler
    if not isinstance(sampler, Sighted):
        raise ValueError("this crop policy looks at the image through an encoder; pass multicrop.encoder.sighted(sampler, encoder)")
    return sampler.at(image)
