"""Pieces of a CLIP layer as transformers builds it: the only file that relies on the names inside the library's towers.

Three computations need them, and `forward` offers none: the last layer at the pooled token alone, crops of the last layer's input tokens,
and prompts that share a prefix. tests/test_encoder_families.py compares the pieces with the library's own output and names what changed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

CAUSAL_FAMILIES = ("clip", "metaclip_2")  # model types with causal texts pooled at the end token and images pooled at the class token
CLASS_TOKEN_FAMILIES = (*CAUSAL_FAMILIES, "chinese_clip", "altclip", "clipseg")  # model types with images pooled at the class token
ROWS = 4  # of the last layer: the class token and three patches; with fewer, features would depend on the number of threads


def heads(layer: nn.Module, x: Float[Tensor, "*batch tokens width"], names: str) -> tuple[Tensor, ...]:
    """Queries, keys and values ("q", "kv" or "qkv") of a layer's input tokens, each (*batch, heads, tokens, dim).

    The type names no shape: tests check that of one element of a tuple, drawn at random, and each trace for OpenVINO would differ.
    """
    attention, x = layer.self_attn, layer.layer_norm1(x)
    projections = (getattr(attention, f"{name}_proj")(x) for name in names)
    return tuple(y.unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2) for y in projections)


def after_attention(layer: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    """The layer's output for its input `x` and the mixed values of its heads: output projection, residuals and MLP."""
    x = x + layer.self_attn.out_proj(mixed.transpose(-3, -2).flatten(-2))
    return x + layer.mlp(layer.layer_norm2(x))


def attention_scale(layer: nn.Module) -> float:
    """The multiplier of query-key products."""
    return layer.self_attn.scale


def layer_at(
    layer: nn.Module, states: Float[Tensor, "batch tokens width"], rows: Float[Tensor, "batch rows width"], mask: Tensor | None = None
) -> Float[Tensor, "batch rows width"]:
    """The layer's output for `rows` alone, which attend to those of `states` that the mask allows."""
    q, k, v = *heads(layer, rows, "q"), *heads(layer, states, "kv")
    dropout = layer.self_attn.dropout if layer.training else 0.0
    return after_attention(
        layer, rows, F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=attention_scale(layer))
    )


def has_class_token(model: nn.Module) -> bool:
    """Whether the image tower has CLIP's parts: a class token, a norm before the layers, a norm after them and a projection."""
    tower = model.vision_model
    return hasattr(tower, "pre_layrnorm") and hasattr(tower, "post_layernorm") and hasattr(model, "visual_projection")


def last_layer_input(
    model: nn.Module, values: Float[Tensor, "batch 3 side side"], *, interpolated: bool = False
) -> Float[Tensor, "batch tokens width"]:
    """The image tokens that enter the last layer, the class token first; `interpolated`: of views of another side than the model's."""
    tower = model.vision_model
    hidden = tower.pre_layrnorm(tower.embeddings(values, interpolate_pos_encoding=interpolated))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden


def image_feature(model: nn.Module, states: Float[Tensor, "sets tokens width"]) -> Float[Tensor, "sets dim"]:
    """The feature, not normalised, of each set of input tokens of the last layer, which computes the class token and three more.

    For fewer than four queries torch divides the sum over keys among its threads, and features would depend on their number.
    """
    tower = model.vision_model
    token = layer_at(tower.encoder.layers[-1], states, states[:, :ROWS])[:, 0]
    return model.visual_projection(tower.post_layernorm(token))


class TextTower:
    """The text tower of a CLIP model in pieces; it shares the weights and gives them no gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.tower, self.projection = _frozen(model.text_model), _frozen(model.text_projection)
        self.layers = list(self.tower.encoder.layers)

    @property
    def width(self) -> int:
        """Channels of an input embedding."""
        return self.tower.embeddings.token_embedding.embedding_dim

    @property
    def bytes_per_value(self) -> int:
        """Bytes of one activation."""
        return self.tower.embeddings.token_embedding.weight.element_size()

    @property
    def positions(self) -> Float[Tensor, "context width"]:
        """The embedding of each position."""
        return self.tower.embeddings.position_embedding.weight

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """Token embeddings without their positions."""
        return self.tower.embeddings.token_embedding(ids)

    def feature(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch dim"]:
        """The unit-norm feature of the last layer's output at the end token."""
        return F.normalize(self.projection(self.tower.final_layer_norm(states)), dim=-1)


@contextmanager
def pooled_alone(model: nn.Module) -> Iterator[None]:
    """Compute the last layer of both towers at the pooled token only, within the block; features and gradients are exact.

    This saves most of a layer: a fifth of the work in a tower of four layers, a fourteenth in one of twelve. `last_hidden_state` then
    holds the pooled token in every place. Texts need their attention mask and padding on the right. Models whose type is not in
    CAUSAL_FAMILIES are left unchanged.
    """
    if model.config.model_type not in CAUSAL_FAMILIES:
        yield
        return
    ends: dict[str, Tensor] = {}

    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        ends["of the batch"] = kwargs["attention_mask"].sum(1) - 1

    layers = model.vision_model.encoder.layers[-1], model.text_model.encoder.layers[-1]
    hook = model.text_model.register_forward_pre_hook(note, with_kwargs=True)
    for layer, pooled in zip(layers, (_at_first, partial(_at_end, ends)), strict=True):
        layer.forward = partial(pooled, layer)
    try:
        yield
    finally:
        hook.remove()
        for layer in layers:
            del layer.forward


def _at_first(layer: nn.Module, hidden_states: Float[Tensor, "batch tokens width"], *_: object, **__: object) -> Tensor:
    return layer_at(layer, hidden_states, hidden_states[:, :1]).expand(-1, hidden_states.shape[1], -1)


def _at_end(
    ends: dict[str, Tensor], layer: nn.Module, hidden_states: Float[Tensor, "batch tokens width"], *_: object, **__: object
) -> Tensor:
    end, (batch, tokens, _) = ends["of the batch"], hidden_states.shape
    rows = hidden_states[torch.arange(batch, device=end.device), end][:, None]
    earlier = torch.arange(tokens, device=end.device) <= end[:, None]
    return layer_at(layer, hidden_states, rows, earlier[:, None, None]).expand(-1, tokens, -1)


def _frozen(module: nn.Module) -> nn.Module:
    """The module with the same weights in memory, but without gradients of them."""
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()})
