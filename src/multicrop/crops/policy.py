"""CropPolicy: a crop function with its knobs, and what it declares of itself: nested boxes, and what it reads of the image."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from multicrop.crops.code import code_hash

CropSampler = Callable[..., Float[Tensor, "crops 4"]]  # (height, width, image_id, seed), knobs already bound
LooksAt = Literal["attention", "tokens"]
Function = TypeVar("Function", bound=CropSampler)


@dataclass(frozen=True)
class GlobalView:
    """What the model's global view shows of an image.

    Args:
        rectangle: The part (left, top, right, bottom) that it shows, in the image's pixels.
        attention: The share of attention per patch of that part; None where no attention is computed.
    """

    rectangle: tuple[float, float, float, float]
    attention: Float[Tensor, "rows columns"] | None = None


@runtime_checkable
class Look(Protocol):
    """Computes the GlobalView of an image, uint8 (3, height, width); `identity` names all that can change it."""

    @property
    def identity(self) -> str:
        """Text that differs where a GlobalView may differ."""
        ...

    def __call__(self, image: Tensor, /) -> GlobalView:
        """The global view of one image."""
        ...


@dataclass(frozen=True)
class CropPolicy:
    """A crop function with its knobs bound; call it as (height, width, image_id, seed) to get boxes.

    Args:
        function: Maps (height, width, image_id, seed) and keyword-only knobs to boxes.
        knobs: The values of the knobs.
        nested: Whether the first k of n crops are the crops of ``n_crops=k``, so that features of n crops answer every smaller number.
        looks_at: What it reads of the image through an encoder: ``"attention"`` (crops are drawn where the model attends), ``"tokens"``
            (crops are cut from the model's token grid) or None (it reads no pixels).
        look: What computes the global view of an image for it; None until an encoder is attached (`multicrop.encoder.with_encoder`).
    """

    function: CropSampler
    knobs: Mapping[str, Any] = field(default_factory=dict)
    nested: bool = False
    looks_at: LooksAt | None = None
    look: Look | None = None

    def __call__(self, height: int, width: int, image_id: str, seed: int) -> Float[Tensor, "crops 4"]:
        """The boxes of one image, without reading it: a policy that looks draws as if the image were shown whole, without attention."""
        return self.function(height, width, image_id, seed, **self.knobs)

    @property
    def identity(self) -> str:
        """Text that differs where boxes or pixels may differ; of nested policies it leaves out the number of crops.

        It holds a hash of the code of a function outside this package.

        Raises:
            ValueError: If the function has no name, so that nothing tells it from another one.
        """
        module, name = (getattr(self.function, part, None) for part in ("__module__", "__qualname__"))
        if name is None:
            raise ValueError(f"a crop policy is a named function, got {self.function!r}; write it with def and bind its knobs with partial")
        knobs = {name: value for name, value in sorted(self.knobs.items()) if not (self.nested and name == "n_crops")}
        code = code_hash(self.function)
        return f"{module}.{name} {knobs}" + (f" code {code}" if code else "") + (f" {self.look.identity}" if self.look else "")

    @property
    def n_crops(self) -> int:
        """Crops per image, without the global view; their number does not depend on the image."""
        return len(self(8, 8, "", 0))

    @property
    def n_views(self) -> int:
        """Views per image: the global view and the crops."""
        return 1 + self.n_crops

    def at(self, image: Tensor) -> "CropPolicy":
        """The policy bound to one image.

        Args:
            image: Pixels, uint8, shape (3, height, width).

        Returns:
            A policy that draws the boxes of this image; the policy itself where it does not look at the image.

        Raises:
            ValueError: If it looks at the image and has no encoder attached.
        """
        if self.looks_at is None:
            return self
        if self.look is None:
            raise ValueError(
                f"{getattr(self.function, '__name__', self.function)} looks at the image and has no encoder attached; "
                "pass multicrop.encoder.with_encoder(policy, encoder)"
            )
        return replace(self, knobs={**self.knobs, "view": self.look(image)})


_DECLARED: dict[CropSampler, CropPolicy] = {}


def crop_policy(*, nested: bool = False, looks_at: LooksAt | None = None) -> Callable[[Function], Function]:
    """Declare what a crop function is; without this decorator it is neither nested nor looks at the image.

    Args:
        nested: See `CropPolicy`; the function then has a knob ``n_crops``.
        looks_at: See `CropPolicy`; the function then has a knob ``view`` that takes a `GlobalView` and defaults to None.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        TypeError: If the function lacks a knob that the declaration needs.
    """

    def declare(function: Function) -> Function:
        knobs = inspect.signature(function).parameters
        for needed, knob in ((nested, "n_crops"), (looks_at is not None, "view")):
            if needed and knob not in knobs:
                raise TypeError(f"{function.__name__} is declared nested={nested}, looks_at={looks_at} and needs a knob {knob}; add it")
        _DECLARED[function] = CropPolicy(function, nested=nested, looks_at=looks_at)
        return function

    return declare


def as_policy(sampler: CropSampler) -> CropPolicy:
    """The crop policy that a function, a functools.partial of one (as Hydra makes with ``_partial_: true``) or a policy stands for.

    Raises:
        TypeError: If a partial binds positional arguments, which are those of the image.
    """
    if isinstance(sampler, CropPolicy):
        return sampler
    if not isinstance(sampler, functools.partial):
        return _DECLARED.get(sampler, CropPolicy(sampler))
    if sampler.args:
        raise TypeError(f"a crop policy's knobs are keywords, got positional arguments {sampler.args}; bind them by name")
    policy = as_policy(sampler.func)
    return replace(policy, knobs={**policy.knobs, **sampler.keywords})
