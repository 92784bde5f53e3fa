"""Types of knobs. A configured function declares in its signature what each value may be; `make schema` writes that to knobs.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval, Len

MOST = 1_000_000  # of anything that is counted or weighed


@dataclass(frozen=True)
class OneOf:
    """A text is one of these."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Matching:
    """A text matches a regular expression, which `words` describe."""

    pattern: str
    words: str


@dataclass(frozen=True, init=False)
class KnobsOf:
    """The knobs are the keyword-only parameters of a function, or the fields of a dataclass or TypedDict."""

    sources: tuple[Any, ...]

    def __init__(self, *sources: Any) -> None:
        object.__setattr__(self, "sources", sources)


Count = Annotated[int, Interval(ge=1, le=MOST)]
Natural = Annotated[int, Interval(ge=0, le=MOST)]
CropCount = Annotated[int, Interval(ge=1, le=4096)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Elements = Annotated[int, Interval(ge=1, le=2**34)]  # numbers in memory at once

Share = Annotated[float | int, Interval(gt=0, le=1)]
Fraction = Annotated[float | int, Interval(ge=0, le=1)]
InnerShare = Annotated[float | int, Interval(gt=0, lt=1)]  # neither nothing nor all
BelowOne = Annotated[float | int, Interval(ge=0, lt=1)]
Positive = Annotated[float | int, Interval(gt=0, le=MOST)]
Weight = Annotated[float | int, Interval(ge=0, le=MOST)]
LogScale = Annotated[float | int, Interval(ge=-20, le=20)]  # exponentiated
Tiles = Annotated[int, Interval(ge=1, le=32)]  # per side of the image
Range = Annotated[Sequence[Share], Len(2, 2)]

ViewSet = Annotated[str, OneOf(("crops", "all"))]
KeyViews = Annotated[str, OneOf(("global", "all", "crops"))]
TextSet = Annotated[str, OneOf(("label", "descriptions", "local", "global", "both", "all"))]
Scope = Annotated[str, OneOf(("local", "global", "both"))]
Samples = Annotated[str, OneOf(("views", "images"))]
Leak = Annotated[str, OneOf(("keep", "drop", "mask"))]
Accelerator = Annotated[str, OneOf(("cpu", "gpu"))]
Template = Annotated[str, Matching(r"^[^{}]*\{\}[^{}]*$", "a text with {} once, where the class name goes")]
Severity = Annotated[int, Interval(ge=1, le=5)]
Character = Annotated[str, Matching(r"^[\s\S]$", "one character")]
Workers = Annotated[int, Interval(ge=0, le=256)]
Devices = Annotated[int, Interval(ge=1, le=64)]
Threads = Annotated[int, Interval(ge=1, le=1024)]
Cut = Annotated[str, OneOf(("worker", "device", "scaled"))]
