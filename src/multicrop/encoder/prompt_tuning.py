"""Learnable context tokens in front of prompts, through a frozen CLIP text tower: shared tokens are computed once, without padding."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from multicrop.encoder.clip_layers import CAUSAL_FAMILIES, TextTower, after_attention, attention_scale, heads
from multicrop.encoder.dual import Encoder
from multicrop.encoder.families import family_of
from multicrop.encoder.prompt_tokens import PromptTokens, chunks, prompt_tokens
from multicrop.text import TextBank

MEMORY = 1 << 30  # bytes of activations that may wait for a backward pass
KEPT = 25  # activations of the tower's width that a token leaves in a layer, about

Context = Float[Tensor, "copies tokens width"]
States = tuple[Tensor, Tensor]  # keys and values of one layer


class PromptTower:
    """Text features of all prompts with learnable context tokens between the start token and the prompt.

    A prompt that begins with the words `lead` loses them, and the context takes their place; any other prompt gets the context in front.
    The tower is causal, so the hidden states of start token and context are the same for all prompts and are computed once per context,
    and those of the words that prompts of a class share ("tern, which has ...") once per class. It is pooled at the end token, so prompts
    need no padding to the model's context length. All of this is exact. The encoder's weights get no gradients.

    Args:
        encoder: An encoder whose text tower is causal (CLIP, MetaCLIP, MetaCLIP 2).
        prompts: The prompts of each class.
        lead: Words that the context replaces; their embeddings are `words()`.
        n_tokens: Number of context tokens; None means as many as `lead` has.

    Raises:
        ValueError: If the text tower is of another kind, or a prompt gets longer than the model's context.
    """

    def __init__(self, encoder: Encoder, prompts: Sequence[Sequence[str]], *, lead: str, n_tokens: int | None = None) -> None:
        if (family := family_of(encoder.model)) not in CAUSAL_FAMILIES:
            raise ValueError(
                f"context tokens need a causal text tower that is pooled at its end token ({', '.join(CAUSAL_FAMILIES)}); "
                f"{encoder.name} is of the family {family!r}. Choose a CLIP model (model=clip_vit_b32), or an adapter or method that needs "
                "no text tower"
            )
        self.tower = TextTower(encoder.model)
        ids = encoder.tokenizer(lead)["input_ids"]
        self.start, self.lead = torch.tensor(ids[:1]), ids[1:-1]
        self.n_tokens = len(self.lead) if n_tokens is None else n_tokens
        if self.n_tokens < 1:
            raise ValueError(f"the context needs one token or more, got {self.n_tokens} (words {lead!r})")
        rows = [[self._without_lead(encoder.tokenizer(text)["input_ids"]) for text in row] for row in prompts]
        self.all, self.labels = prompt_tokens(rows), prompt_tokens([row[:1] for row in rows])
        limit, longest = encoder.rule.context, 1 + self.n_tokens + self.all.longest()
        if longest > limit:
            raise ValueError(
                f"{self.n_tokens} context tokens make the longest prompt {longest} tokens long, and the model reads {limit}; "
                "use fewer of them (n_tokens, start=words, or fewer words), or shorter prompts"
            )

    def words(self) -> Float[Tensor, "tokens width"]:
        """The input embeddings of the lead words."""
        return self.tower.embed(torch.tensor(self.lead, dtype=torch.long)).detach().clone()

    @property
    def width(self) -> int:
        """Channels of an input embedding."""
        return self.tower.width

    def wanted(self, text: TextBank, *, labels_alone: bool) -> tuple[TextBank, PromptTokens]:
        """The prompts to encode, as a text bank and as tokens.

        Args:
            text: The text bank of this tower's prompts.
            labels_alone: Whether only the label prompt of each class is read.
        """
        return (text.select("label"), self.labels) if labels_alone else (text, self.all)

    def copies_at_once(self, prompts: PromptTokens) -> int:
        """The number of contexts whose activations, with all of these prompts, fit in memory for one backward pass."""
        return max(1, self._tokens_in_memory() // prompts.tokens())

    def features(self, context: Context, prompts: PromptTokens) -> Float[Tensor, "copies classes prompts dim"]:
        """Encode every prompt with every context, differentiable in the context and in bounded memory.

        Args:
            context: Input embeddings of the context tokens, shape (copies, tokens, width).
            prompts: The prompts of the classes (`all` or `labels`).

        Returns:
            Unit-norm features, shape (copies, classes, prompts, dim); 0 where a class has fewer prompts.
        """
        prefix = self._prefix(context)
        heavy = torch.is_grad_enabled() and len(context) * prompts.tokens() > self._tokens_in_memory()
        run = partial(checkpoint, use_reentrant=False) if heavy else _called

        parts = partial(chunks, room=self._tokens_in_memory() // len(context))
        begun = [run(self._stems, prefix, prompts.stems[part, : int(prompts.depth[part].max())]) for part in parts(prompts.depth)]
        stems = [tuple(_together(states) for states in zip(*layer, strict=True)) for layer in zip(*begun, strict=True)]
        features = []
        for part in parts(prompts.last + 1):
            last, stem = prompts.last[part], prompts.stem[part]
            ids = prompts.ids[part, : int(last.max()) + 1]
            features.append(run(self._suffixes, prefix, stems, stem, prompts.depth[stem][None], ids[None], last[None]))
        return torch.cat(features, 1)[:, prompts.place.clamp_min(0)] * (prompts.place >= 0)[..., None]

    def own_features(self, context: Float[Tensor, "classes tokens width"], prompts: PromptTokens) -> Float[Tensor, "classes prompts dim"]:
        """Encode the prompts of each class with the context of that class.

        Args:
            context: Input embeddings of the context tokens, shape (classes, tokens, width).
            prompts: The prompts of the classes (`all` or `labels`).

        Returns:
            Unit-norm features, shape (classes, prompts, dim); 0 where a class has fewer prompts.
        """
        prefix, place = self._prefix(context), prompts.place.clamp_min(0)
        none = [(key[:, None, :, :0], value[:, None, :, :0]) for key, value in prefix]
        ids, last = (whole[place] for whole in prompts.uncut())
        features = self._suffixes(prefix, none, place[0] * 0, place * 0, ids, last)
        return features * (prompts.place >= 0)[..., None]

    def _without_lead(self, ids: list[int]) -> list[int]:
        begins = self.lead and ids[1 : 1 + len(self.lead)] == self.lead
        return ids[1 + len(self.lead) :] if begins else ids[1:]

    def _tokens_in_memory(self) -> int:
        return MEMORY // (len(self.tower.layers) * self.width * KEPT * self.tower.bytes_per_value)

    def _prefix(self, context: Context) -> list[States]:
        """Keys and values (copies, heads, tokens, dim) of start token and context in each layer."""
        start = self.tower.embed(self.start).expand(len(context), 1, -1)
        x = torch.cat([start, context], 1) + self.tower.positions[: 1 + context.shape[1]]
        states = []
        for layer in self.tower.layers:
            q, k, v = heads(layer, x, "qkv")
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = after_attention(layer, x, mixed)
            states.append((k, v))
        return states

    def _stems(self, prefix: list[States], ids: Int[Tensor, "stems begun"]) -> list[States]:
        """Keys and values (copies, stems, heads, tokens, dim) of the stems, after the prefix."""
        first, place = 1 + self.n_tokens, torch.arange(ids.shape[1])
        x = self.tower.embed(ids) + self.tower.positions[first : first + ids.shape[1]]
        x = x.expand(len(prefix[0][0]), -1, -1, -1)
        states = []
        for layer, before in zip(self.tower.layers, prefix, strict=True):
            q, k, v = heads(layer, x, "qkv")
            states.append((k, v))
            if layer is not self.tower.layers[-1]:
                x = after_attention(layer, x, _mixed(layer, q, k, v, before, later=place > place[:, None]))
        return states

    def _suffixes(
        self,
        prefix: list[States],
        stems: list[States],
        stem: Int[Tensor, " p"],
        depth: Int[Tensor, "own p"],
        ids: Int[Tensor, "own p s"],
        last: Int[Tensor, "own p"],
    ) -> Tensor:
        """Unit features (copies, prompts, dim) of what follows the prefix and the stem of each prompt."""
        copies, length, begun = len(prefix[0][0]), ids.shape[2], int(depth.max())
        layers, place, table = self.tower.layers, torch.arange(length), self.tower.positions
        position = (1 + self.n_tokens + depth[..., None] + place).clamp_max(len(table) - 1)  # padding may lie beyond the table
        x = (self.tower.embed(ids) + table[position]).expand(copies, -1, -1, -1)
        absent = torch.arange(begun) >= depth[..., None, None, None]

        def later(own: Tensor) -> Tensor:
            """The mask of keys that do not count, of the stem and of the prompt."""
            return torch.cat([part.expand(*depth.shape, 1, own.shape[-2], -1) for part in (absent, own)], -1)

        def after_stem(states: States, k: Tensor, v: Tensor) -> States:
            if not begun:
                return k, v
            key, value = (state.index_select(1, stem)[..., :begun, :] for state in states)
            return torch.cat([key, k], -2), torch.cat([value, v], -2)

        causal = later(place > place[:, None])
        for layer, before, states in zip(layers[:-1], prefix[:-1], stems[:-1], strict=True):
            q, k, v = heads(layer, x, "qkv")
            x = after_attention(layer, x, _mixed(layer, q, *after_stem(states, k, v), before, causal))
        end = x.gather(2, last[..., None, None].expand(copies, -1, 1, x.shape[3]))  # nothing else of the last layer is read
        q, k, v = *heads(layers[-1], end, "q"), *heads(layers[-1], x, "kv")
        mixed = _mixed(layers[-1], q, *after_stem(stems[-1], k, v), prefix[-1], later(place > last[:, :, None, None, None]))
        return self.tower.feature(after_attention(layers[-1], end, mixed).squeeze(2))


def _together(parts: tuple[Tensor, ...]) -> Tensor:
    """States of several chunks as those of one, padded to the longest."""
    longest = max(part.shape[3] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[3])) for part in parts], 1)


def _called(function: Callable[..., Tensor | list[States]], *args: object) -> Tensor | list[States]:
    return function(*args)


def _mixed(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, prefix: States, later: Tensor) -> Tensor:
    """Values of the prefix and of the prompt as the queries weigh them, without those where `later` is true."""
    key, value = prefix
    before = torch.einsum("bphsd,bhnd->bphsn", q, key)
    within = (q @ k.transpose(-1, -2)).masked_fill(later, -torch.inf)
    weights = (torch.cat([before, within], -1) * attention_scale(layer)).softmax(-1)
    return torch.einsum("bphsn,bhnd->bphsd", weights[..., : key.shape[2]], value) + weights[..., key.shape[2] :] @ v
