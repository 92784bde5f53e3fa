"""Aggregator: an aggregator function with its knobs, and what it declares of itself: its transport plan, the prompts that it reads."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators.base import Logits, Views
from multicrop.text import TextBank

AggregatorFunction = Callable[..., Logits]  # (views, text, logit_scale), knobs already bound
Function = TypeVar("Function", bound=AggregatorFunction)


class TransportPlan(NamedTuple):
    """How the mass of an image's views is moved to the prompts of each class.

    Args:
        similarities: Cosine similarities of views and prompts.
        mass: The mass that each view sends to each prompt; 0 on padding.
        text: The prompts that the plan runs over.
    """

    similarities: Float[Tensor, "batch classes views prompts"]
    mass: Float[Tensor, "batch classes views prompts"]
    text: TextBank


@dataclass(frozen=True)
class Aggregator:
    """An aggregator function with its knobs bound; call it as (views, text, logit_scale) to get class logits.

    Args:
        function: Maps (views, text, logit_scale) and keyword-only knobs to logits, shape (batch, classes).
        knobs: The values of the knobs.
        plan_function: Maps (views, text), logit_scale, classes and the same knobs to the `TransportPlan` behind the logits, which are
            logit_scale * <mass, similarities> / sum(mass). None where there is no plan.
        labels_only: Whether it reads no prompt but the label prompts, whatever its knobs.
        pruning: The knob that switches pruning on, followed by the knobs that only pruning reads; empty where nothing is pruned.
    """

    function: AggregatorFunction
    knobs: Mapping[str, Any] = field(default_factory=dict)
    plan_function: Callable[..., TransportPlan] | None = None
    labels_only: bool = False
    pruning: tuple[str, ...] = ()

    def __call__(self, views: Views, text: TextBank, logit_scale: float) -> Logits:
        """The class logits of each image's views; raises ValueError where the shapes of views and texts do not fit."""
        check_views(views, text)
        return self.function(views, text, logit_scale, **self.knobs)

    @property
    def has_plan(self) -> bool:
        """Whether there is a transport plan behind the logits."""
        return self.plan_function is not None

    def plan(self, views: Views, text: TextBank, logit_scale: float, *, classes: Sequence[int] | None = None) -> TransportPlan | None:
        """The transport plan behind the logits.

        Args:
            views: Unit-norm view features, shape (batch, views, dim); view 0 is the global view.
            text: Text bank with all classes, because marginals may compare them.
            logit_scale: Multiplier of cosine similarities.
            classes: The classes to solve, in this order; None: all.

        Returns:
            The plans of these classes; None where the aggregator has no plan.
        """
        if self.plan_function is None:
            return None
        check_views(views, text)
        return self.plan_function(views, text, logit_scale=logit_scale, classes=classes, **self.knobs)

    @property
    def view_set(self) -> str:
        """The views that it reads: ``"crops"`` or ``"all"``."""
        return str(self._knob("view_set", "all"))

    @property
    def crops_only(self) -> bool:
        """Whether it reads the crops and not the global view, neither as a view nor for the masses of crops and prompts."""
        marginals = {self._knob("view_marginal", "uniform"), self._knob("prompt_marginal", "uniform")}
        return self.view_set == "crops" and marginals == {"uniform"}

    @property
    def text_set(self) -> str:
        """The prompts that it reads: ``"label"``, ``"descriptions"`` or ``"all"``."""
        return "label" if self.labels_only else str(self._knob("text_set", "all"))

    @property
    def prunes(self) -> bool:
        """Whether only the best classes get exact logits, and the others bounds."""
        return bool(self.pruning and self._knob(self.pruning[0], False))

    @property
    def identity(self) -> str:
        """Text that differs where logits may differ.

        Raises:
            ValueError: If the function has no name, which its identity needs.
        """
        module, name = (getattr(self.function, part, None) for part in ("__module__", "__qualname__"))
        if name is None:
            raise ValueError(f"an aggregator is a named function, got {self.function!r}; write it with def and bind its knobs with partial")
        unread = () if self.prunes else self.pruning[1:]
        return f"{module}.{name} { {name: value for name, value in sorted(self.knobs.items()) if name not in unread} }"

    def _knob(self, name: str, default: str | bool) -> object:
        """A knob's value: as bound, else the function's default, else `default`."""
        if name in self.knobs:
            return self.knobs[name]
        parameter = inspect.signature(self.function).parameters.get(name)
        return default if parameter is None or parameter.default is parameter.empty else parameter.default


def check_views(views: Tensor, text: TextBank) -> None:
    """Raise ValueError where views are not (batch, views, dim) with the dimension and the precision of the texts."""
    dim, dtype = text.features.shape[-1], text.features.dtype
    if views.ndim != 3 or views.shape[2] != dim or not views.shape[1] or views.dtype != dtype:
        raise ValueError(
            f"an aggregator reads unit-norm views of shape (batch, views, {dim}) in {dtype}, as the texts are; got {tuple(views.shape)} in "
            f"{views.dtype}. View 0 is the global view: add a dimension to a single view with views[:, None], and convert with views.to()"
        )


_DECLARED: dict[AggregatorFunction, Aggregator] = {}


def aggregator(
    *, plan: Callable[..., TransportPlan] | None = None, labels_only: bool = False, pruning: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Declare what an aggregator function is; without this decorator it has no plan, does not prune, and reads what its knobs say.

    Args:
        plan: See `Aggregator.plan_function`.
        labels_only: See `Aggregator`.
        pruning: See `Aggregator`.

    Returns:
        A decorator that leaves the function as it is.
    """

    def declare(function: Function) -> Function:
        _DECLARED[function] = Aggregator(function, plan_function=plan, labels_only=labels_only, pruning=tuple(pruning))
        return function

    return declare


def as_aggregator(given: AggregatorFunction) -> Aggregator:
    """The aggregator that a function, a functools.partial of one (as Hydra makes with ``_partial_: true``) or an Aggregator stands for.

    Raises:
        TypeError: If a partial binds positional arguments, which are views, text and logit scale.
    """
    if isinstance(given, Aggregator):
        return given
    if not isinstance(given, functools.partial):
        return _DECLARED.get(given, Aggregator(given))
    if given.args:
        raise TypeError(f"an aggregator's knobs are keywords, got positional arguments {given.args}; bind them by name")
    made = as_aggregator(given.func)
    return replace(made, knobs={**made.knobs, **given.keywords})
