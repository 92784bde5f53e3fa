"""Views of another side than the model's in the vision transformers of an open_clip model, through interpolated positions."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, cat
from torch.func import functional_call
from torch.nn import functional as F

POSITIONS = "positional_embedding"


class OtherSides:
    """Runs an image tower on views of other sides: open_clip's own vision transformer, or one of timm.

    A tower of timm is copied per side, without its weights; timm's own `set_input_size` interpolates its table of positions and computes
    its rotary ones.
    """

    def __init__(self) -> None:
        self.copies: dict[tuple[int, torch.device, torch.dtype], Any] = {}

    def features(self, tower: Any, values: Float[Tensor, "views 3 side side"]) -> Tensor | tuple[Tensor, ...]:
        """What the tower returns for normalised views of another side; raises ValueError for a tower that reads one side alone."""
        side = int(values.shape[-1])  # a tensor while OpenVINO traces
        if hasattr(tower, POSITIONS):
            return functional_call(tower, {POSITIONS: positions_at(tower, side)}, (values,))
        key = side, values.device, values.dtype
        if key not in self.copies:
            self.copies[key] = _resized(tower, side)
        return self.copies[key](values)


def positions_at(tower: Any, side: int) -> Float[Tensor, "tokens width"]:
    """The positions for views of this side, as open_clip makes them when it loads a model at another size: bicubic, antialiased."""
    own, (rows, columns), count = getattr(tower, POSITIONS), tower.grid_size, side // tower.patch_size[0]
    tokens = len(own) - rows * columns  # that of the class
    grid = own[tokens:].float().T.unflatten(1, (rows, columns))[None]
    grid = F.interpolate(grid, (count, count), mode="bicubic", antialias=True, align_corners=False)
    return cat([own[:tokens], grid[0].flatten(1).T.to(own.dtype)])


def _resized(tower: Any, side: int) -> Any:
    """A tower of timm for views of this side, which shares all weights but the table of positions."""
    if not hasattr(tower.trunk, "set_input_size"):
        raise ValueError(f"timm's {type(tower.trunk).__name__} reads one side")
    with torch.inference_mode(False), torch.no_grad():
        other = copy.deepcopy(tower, {id(weight): weight for weight in tower.parameters()})
        try:
            other.set_input_size(side)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"timm's {type(tower.trunk).__name__} reads one side") from error
        if getattr(other.trunk, "pos_embed", None) is not None:
            other.trunk.pos_embed.requires_grad_(False)
    return other
