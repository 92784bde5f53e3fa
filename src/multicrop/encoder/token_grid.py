"""crop=feature: crops of the input tokens of the last layer, finished by that layer (ABS)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.encoder.clip_layers import has_class_token, image_feature, last_layer_input


def check_token_grid(model: nn.Module, name: str) -> None:
    """Raise ValueError unless the image tower is CLIP's."""
    if not has_class_token(model):
        raise ValueError(
            f"crop=feature cuts the token grid under a class token, as CLIP, MetaCLIP, Chinese-CLIP and AltCLIP have it; {name} "
            f"({type(model.vision_model).__name__}) has another head. Choose one of those, or crops of pixels (crop=random)"
        )


def finished_crops(
    model: nn.Module, values: Float[Tensor, "batch 3 side side"], boxes: Float[Tensor, "batch crops 4"]
) -> Float[Tensor, "batch views dim"]:
    """Features (not yet unit-norm) of the whole grid and of each crop, from the normalised pixels of the global view.

    The tokens under a box (x1, top, x2, bottom as shares of the view) are resized to the whole grid, bilinear. Every crop keeps the class
    token of the image.
    """
    hidden = last_layer_input(model, values)
    crops = resized_tokens(hidden[:, 1:], boxes)
    first = hidden[:, None, :1].expand(-1, crops.shape[1], -1, -1)
    sets = torch.cat([hidden[:, None], torch.cat([first, crops], dim=2)], dim=1)
    return image_feature(model, sets.flatten(0, 1)).unflatten(0, sets.shape[:2])


def resized_tokens(
    tokens: Float[Tensor, "batch cells width"], boxes: Float[Tensor, "batch crops 4"]
) -> Float[Tensor, "batch crops cells width"]:
    """A square grid of tokens, read at the cell centres of each box stretched to the whole grid; bilinear, edges repeated."""
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.transpose(1, 2).unflatten(2, (side, side)).float()
    steps = (torch.arange(side, device=tokens.device) + 0.5) / side
    x = boxes[..., 0:1] + steps * (boxes[..., 2:3] - boxes[..., 0:1])
    y = boxes[..., 1:2] + steps * (boxes[..., 3:4] - boxes[..., 1:2])
    where = torch.stack(torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), dim=-1)
    read = F.grid_sample(grid, where.flatten(1, 2) * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return read.unflatten(2, (boxes.shape[1], side)).permute(0, 2, 3, 4, 1).flatten(2, 3).to(tokens.dtype)
