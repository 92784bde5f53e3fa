"""Crops of the last block's input tokens, finished by that block: the work of one image, whatever the number of crops (ABS)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def check_token_grid(model: nn.Module, name: str) -> None:
    """Raise ValueError unless the image tower is CLIP's: a class token, blocks with a norm before each half, a norm and a projection."""
    tower = model.vision_model
    if not (hasattr(tower, "pre_layrnorm") and hasattr(tower, "post_layernorm") and hasattr(model, "visual_projection")):
        raise ValueError(
            f"crop=feature cuts the token grid under a class token, as CLIP, MetaCLIP, Chinese-CLIP and AltCLIP have it; {name} "
            f"({type(tower).__name__}) has another head. Choose one of those, or crops of pixels (crop=random)"
        )


def finished_crops(
    model: nn.Module, values: Float[Tensor, "batch 3 side side"], boxes: Float[Tensor, "batch crops 4"]
) -> Float[Tensor, "batch views dim"]:
    """Features (not yet unit-norm) of the whole grid and of each crop, from the normalised pixels of the global view.

    The tokens under a box (x1, top, x2, bottom as shares of the view) are resized to the whole grid, bilinear; the class token is
    the image's own in every crop. Only the class token leaves the last block, so only its query and its MLP are computed there.
    """
    tower = model.vision_model
    hidden = tower.pre_layrnorm(tower.embeddings(values))
    *layers, last = tower.encoder.layers
    for layer in layers:
        hidden = layer(hidden, None)
    crops = resized_tokens(hidden[:, 1:], boxes)
    first = hidden[:, None, :1].expand(-1, crops.shape[1], -1, -1)
    sets = torch.cat([hidden[:, None], torch.cat([first, crops], dim=2)], dim=1)
    return model.visual_projection(tower.post_layernorm(_class_token(last, sets.flatten(0, 1)))).unflatten(0, sets.shape[:2])


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


def _class_token(layer: nn.Module, tokens: Float[Tensor, "sets tokens width"]) -> Float[Tensor, "sets width"]:
    """The class token that leaves a block: attention from it alone, then its MLP."""
    attention, x = layer.self_attn, layer.layer_norm1(tokens)

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads(attention.q_proj(x[:, :1])), heads(attention.k_proj(x)), heads(attention.v_proj(x)))
    token = tokens[:, :1] + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return (token + layer.mlp(layer.layer_norm2(token)))[:, 0]
