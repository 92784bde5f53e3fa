"""Views of a NaFlex model: each keeps its shape, and gets as many patches as its own pixels fill, rounded up to a bucket.

The views of an image have to be squares of one size. A view here is a square of slots of one patch each, which hold its patches row by row;
the last slot holds the number of its rows and columns.
"""

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

BYTE = 256


def token_bucket(height: int, width: int, patch: int, buckets: tuple[int, ...]) -> int:
    """The most tokens that a view of this size gets: the smallest bucket that holds the patches which its pixels fill, or the largest."""
    filled = math.ceil(height / patch) * math.ceil(width / patch)
    return min((bucket for bucket in buckets if bucket >= filled), default=max(buckets))


def token_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of patches at the largest scale of a view at which they are at most `tokens`, as SigLIP 2's processor has them.

    A scaled view has another row from the scale at which its rows are full, and so for columns: the one that is full first grows.
    """
    rows = columns = 1
    while True:
        full_rows, full_columns = rows * width, columns * height
        more_rows, more_columns = rows + (full_rows <= full_columns), columns + (full_columns <= full_rows)
        if more_rows * more_columns > tokens:
            return rows, columns
        rows, columns = more_rows, more_columns


def packed_side(patch: int, buckets: tuple[int, ...]) -> int:
    """The side, pixels, of the square that holds the patches of a view and a slot more."""
    return (math.isqrt(max(buckets)) + 1) * patch


def packed(
    image: UInt8[Tensor, "channels height width"], side: int, patch: int, buckets: tuple[int, ...], interpolation: str
) -> UInt8[Tensor, "channels side side"]:
    """The patches of a view and their grid, as a square of `side`."""
    from torchvision.transforms.v2 import InterpolationMode  # seconds of imports, which a bank at hand does not need
    from torchvision.transforms.v2 import functional as F

    rows, columns = token_grid(*image.shape[1:], token_bucket(*image.shape[1:], patch, buckets))
    resized = F.resize(image, [rows * patch, columns * patch], InterpolationMode(interpolation), antialias=True)
    slots = image.new_zeros(len(image), (side // patch) ** 2, patch, patch)
    slots[:, : rows * columns] = resized.unfold(1, patch, patch).unfold(2, patch, patch).flatten(1, 2)
    slots[:2, -1, 0, :2] = torch.tensor([divmod(rows, BYTE), divmod(columns, BYTE)]).T
    return slots.unflatten(1, (side // patch, -1)).permute(0, 1, 3, 2, 4).reshape(len(image), side, side)


def grids_of(views: UInt8[Tensor, "views 3 side side"], patch: int) -> Int[Tensor, "views 2"]:
    """Rows and columns of packed views."""
    digits = views[:, :2, -patch, -patch : views.shape[-1] - patch + 2].long()
    return digits[:, 0] * BYTE + digits[:, 1]


def slots_of(values: Float[Tensor, "views 3 side side"], patch: int) -> Float[Tensor, "views slots values"]:
    """The slots of packed views as SigLIP 2's tower reads patches: row by row, the channels of a pixel together."""
    slots = values.unfold(2, patch, patch).unfold(3, patch, patch)  # views, 3, rows, columns, patch, patch
    return slots.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
