"""Learnable context tokens in front of prompts, through a frozen CLIP text tower: shared work once, the rest trimmed to its length."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from multicrop.encoder import Encoder
from multicrop.prompts import TextBank

FAMILIES = ("clip", "metaclip_2")  # causal, pooled at the end token, positions added to the input embeddings
CHUNK = 256  # prompts of like length that are computed together
MEMORY = 1 << 30  # bytes of activations that may wait for a backward pass
KEPT = 25  # activations of the tower's width that a token leaves in a layer, about

Context = Float[Tensor, "copies tokens width"]


@dataclass(frozen=True)
class Sheet:
    """Distinct prompts without their lead, shortest first, as token ids; `last` is each one's end token, `place` where it belongs."""

    ids: Int[Tensor, "distinct length"]
    last: Int[Tensor, " distinct"]
    place: Int[Tensor, "classes prompts"]  # -1: padding

    def tokens(self) -> int:
        """Tokens behind the context, padding left out."""
        return int(self.last.sum()) + len(self.last)


class PromptTower:
    """Unit features of all prompts of all classes with context tokens between the start token and the prompt.

    A prompt that begins with the words `lead` loses them: the context takes their place. In another one the context goes in front.
    Because the tower is causal, the hidden states of start token and context are the same for all prompts and are computed once a
    context; because it is pooled at the end token, prompts need no padding to the model's length. Both are exact. The encoder stays as
    it is: its weights get no gradients. `n_tokens` is the number of context tokens, by default as many as the lead has. Raises ValueError
    when the encoder's text tower is not of this kind, or a prompt gets too long.
    """

    def __init__(self, encoder: Encoder, prompts: Sequence[Sequence[str]], *, lead: str, n_tokens: int | None = None) -> None:
        family = getattr(getattr(encoder.model, "config", None), "model_type", type(encoder.model).__name__)
        if family not in FAMILIES:
            raise ValueError(
                f"context tokens need a causal text tower that is pooled at its end token ({', '.join(FAMILIES)}); {encoder.name} is of "
                f"the family {family!r}. Choose a CLIP model (model=clip_vit_b32), or an adapter or method that needs no text tower"
            )
        self.tower, self.projection = _frozen(encoder.model.text_model), _frozen(encoder.model.text_projection)
        self.lead = encoder.tokenizer(lead)["input_ids"][1:-1]
        self.n_tokens = len(self.lead) if n_tokens is None else n_tokens
        if self.n_tokens < 1:
            raise ValueError(f"the context has one token or more, got {self.n_tokens} (words {lead!r})")
        rows = [[self._without_lead(encoder.tokenizer(text)["input_ids"]) for text in row] for row in prompts]
        self.start = torch.tensor(encoder.tokenizer(lead)["input_ids"][:1])
        self.all, self.labels = _sheet(rows), _sheet([row[:1] for row in rows])
        limit, longest = encoder.rule.context, 1 + self.n_tokens + self.all.ids.shape[1]
        if longest > limit:
            raise ValueError(
                f"{self.n_tokens} context tokens make the longest prompt {longest} tokens long, and the model reads {limit}; "
                "use fewer of them (n_tokens, start=words, or fewer words), or shorter prompts"
            )

    def words(self) -> Float[Tensor, "tokens width"]:
        """The input embeddings of the lead."""
        return self.tower.embeddings.token_embedding(torch.tensor(self.lead, dtype=torch.long)).detach().clone()

    @property
    def width(self) -> int:
        """Channels of an input embedding."""
        return self.tower.embeddings.token_embedding.embedding_dim

    def wanted(self, text: TextBank, *, labels_alone: bool) -> tuple[TextBank, Sheet]:
        """What is wanted of `text`, the bank of this tower's prompts, and its sheet: nothing else need go through the tower."""
        return (text.select("label"), self.labels) if labels_alone else (text, self.all)

    def copies_at_once(self, sheet: Sheet) -> int:
        """How many contexts may wait for a backward pass at once, with all prompts of the sheet."""
        return max(1, self._tokens_in_memory() // sheet.tokens())

    def features(self, context: Context, sheet: Sheet) -> Float[Tensor, "copies classes prompts dim"]:
        """Every prompt of the sheet with every context; padding is 0. Differentiable in the context, in bounded memory."""
        prefix = self._prefix(context)
        ids, last = sheet.ids[None], sheet.last[None]
        heavy = torch.is_grad_enabled() and len(context) * sheet.tokens() > self._tokens_in_memory()
        size = max(1, min(CHUNK, self._tokens_in_memory() // (len(context) * ids.shape[2])))
        parts = []
        for start in range(0, ids.shape[1], size):
            end = last[:, start : start + size]
            part = (prefix, ids[:, start : start + size, : int(end.max()) + 1], end)
            parts.append(checkpoint(self._suffixes, *part, use_reentrant=False) if heavy else self._suffixes(*part))
        return torch.cat(parts, 1)[:, sheet.place.clamp_min(0)] * (sheet.place >= 0)[..., None]

    def own_features(self, context: Float[Tensor, "classes tokens width"], sheet: Sheet) -> Float[Tensor, "classes prompts dim"]:
        """The prompts of each class on the sheet with the class's own context; padding is 0."""
        place = sheet.place.clamp_min(0)
        return self._suffixes(self._prefix(context), sheet.ids[place], sheet.last[place]) * (sheet.place >= 0)[..., None]

    def _without_lead(self, ids: list[int]) -> list[int]:
        begins = self.lead and ids[1 : 1 + len(self.lead)] == self.lead
        return ids[1 + len(self.lead) :] if begins else ids[1:]

    def _tokens_in_memory(self) -> int:
        layers, size = len(self.tower.encoder.layers), self.tower.embeddings.token_embedding.weight.element_size()
        return MEMORY // (layers * self.width * KEPT * size)

    def _prefix(self, context: Context) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (copies, heads, tokens, dim) of start token and context in each layer."""
        embeddings = self.tower.embeddings
        start = embeddings.token_embedding(self.start).expand(len(context), 1, -1)
        x = torch.cat([start, context], 1) + embeddings.position_embedding.weight[: 1 + context.shape[1]]
        states = []
        for layer in self.tower.encoder.layers:
            q, k, v = _heads(layer, x, "qkv")
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = _rest(layer, x, mixed)
            states.append((k, v))
        return states

    def _suffixes(self, prefix: list[tuple[Tensor, Tensor]], ids: Int[Tensor, "own p s"], last: Int[Tensor, "own p"]) -> Tensor:
        """Unit features (copies, prompts, dim) of what follows the prefix."""
        first, length, copies = 1 + self.n_tokens, ids.shape[2], len(prefix[0][0])
        embeddings, layers, place = self.tower.embeddings, self.tower.encoder.layers, torch.arange(length)
        x = embeddings.token_embedding(ids) + embeddings.position_embedding.weight[first : first + length]
        x = x.expand(copies, -1, -1, -1)
        for layer, states in zip(layers[:-1], prefix[:-1], strict=True):
            q, k, v = _heads(layer, x, "qkv")
            x = _rest(layer, x, _mixed(layer, q, k, v, states, later=place > place[:, None]))
        end = x.gather(2, last[..., None, None].expand(copies, -1, 1, x.shape[3]))  # nothing else of the last layer is read
        later = place > last[:, :, None, None, None]
        q, k, v = *_heads(layers[-1], end, "q"), *_heads(layers[-1], x, "kv")
        end = _rest(layers[-1], end, _mixed(layers[-1], q, k, v, prefix[-1], later=later)).squeeze(2)
        return F.normalize(self.projection(self.tower.final_layer_norm(end)), dim=-1)


def _frozen(module: nn.Module) -> nn.Module:
    """The module with the same weights in memory, but without gradients of them."""
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()})


def _heads(layer: nn.Module, x: Tensor, names: str) -> tuple[Tensor, ...]:
    """Queries, keys and values, those of `names`, of tokens (..., tokens, width), as (..., heads, tokens, dim)."""
    attention, x = layer.self_attn, layer.layer_norm1(x)
    projections = (getattr(attention, f"{name}_proj")(x) for name in names)
    return tuple(y.unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2) for y in projections)


def _mixed(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor], later: Tensor) -> Tensor:
    """Values of the prefix and of the prompt's own tokens as the queries weigh them; those that come `later` do not count."""
    key, value = prefix
    before = torch.einsum("bphsd,bhnd->bphsn", q, key)
    within = (q @ k.transpose(-1, -2)).masked_fill(later, -torch.inf)
    weights = (torch.cat([before, within], -1) * layer.self_attn.scale).softmax(-1)
    return torch.einsum("bphsn,bhnd->bphsd", weights[..., : key.shape[2]], value) + weights[..., key.shape[2] :] @ v


def _rest(layer: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    """The layer after its attention has mixed the values."""
    x = x + layer.self_attn.out_proj(mixed.transpose(-3, -2).flatten(-2))
    return x + layer.mlp(layer.layer_norm2(x))


def _sheet(rows: list[list[list[int]]]) -> Sheet:
    distinct = sorted(dict.fromkeys(tuple(ids) for row in rows for ids in row), key=len)
    position = {ids: index for index, ids in enumerate(distinct)}
    padded = torch.zeros(len(distinct), len(distinct[-1]), dtype=torch.long)
    for index, ids in enumerate(distinct):
        padded[index, : len(ids)] = torch.tensor(ids)
    place = torch.full((len(rows), max(map(len, rows))), -1)
    for c, row in enumerate(rows):
        place[c, : len(row)] = torch.tensor([position[tuple(ids)] for ids in row])
    return Sheet(padded, torch.tensor([len(ids) - 1 for ids in distinct]), place)
