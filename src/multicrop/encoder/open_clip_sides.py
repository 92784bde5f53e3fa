"""Views of another side than the model's in open_clip's own vision transformer, through interpolated positions."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, cat
from torch.func import functional_call
from torch.nn import functional as F

POSITIONS = "positional_embedding"


def at_another_side(tower: Any, values: Float[Tensor, "views 3 side side"]) -> Tensor | tuple[Tensor, ...]:
    """What the tower returns for normalised views of another side; raises ValueError for a tower of timm, which has other positions."""
    if not hasattr(tower, POSITIONS):
        raise ValueError("it is a tower of timm, whose positions belong to its own side")
    return functional_call(tower, {POSITIONS: positions_at(tower, values.shape[-1])}, (values,))


def positions_at(tower: Any, side: int) -> Float[Tensor, "tokens width"]:
    """The positions for views of this side, as open_clip makes them when it loads a model at another size: bicubic, antialiased."""
    own, (rows, columns), count = getattr(tower, POSITIONS), tower.grid_size, side // tower.patch_size[0]
    tokens = len(own) - rows * columns  # that of the class
    grid = own[tokens:].float().T.unflatten(1, (rows, columns))[None]
    grid = F.interpolate(grid, (count, count), mode="bicubic", antialias=True, align_corners=False)
    return cat([own[:tokens], grid[0].flatten(1).T.to(own.dtype)])
