"""The last layer of open_clip's own vision transformer for the tokens that are read alone."""

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from multicrop.encoder.clip_layers import ROWS


def read_class_token_alone(tower: Any) -> None:
    """Let the last layer compute the class token and three patches, where nothing else is read: features are exact.

    A tower that is pooled otherwise (CLIPA, CoCa), or is not open_clip's own, stays as it is.
    """
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if not isinstance(tower, VisionTransformer) or tower.attn_pool is not None or tower.pool_type != "tok":
        return
    block = tower.transformer.resblocks[-1]
    if type(block) is ResidualAttentionBlock and tower.transformer.batch_first:
        block.forward = partial(_first_rows, block)


def _first_rows(block: Any, x: Float[Tensor, "views tokens width"], **_: object) -> Float[Tensor, "views rows width"]:
    """The layer's output at the first tokens, which attend to all."""
    states, rows = block.ln_1(x), x[:, :ROWS]
    rows = rows + block.ls_1(block.attention(q_x=states[:, :ROWS], k_x=states, v_x=states))
    return rows + block.ls_2(block.mlp(block.ln_2(rows)))
