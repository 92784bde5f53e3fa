"""Learnable context tokens in front of prompts, through a frozen CLIP text tower: shared work once, the rest trimmed to its length."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from multicrop.encoder import CAUSAL_FAMILIES, Encoder, heads, rest
from multicrop.text import TextBank

CHUNK = 256  # prompts of like length that are computed together, at most
FEW, WASTE = 32, 1.25  # from so many prompts on, padded tokens over tokens at most
MEMORY = 1 << 30  # bytes of activations that may wait for a backward pass
KEPT = 25  # activations of the tower's width that a token leaves in a layer, about

Context = Float[Tensor, "copies tokens width"]
States = tuple[Tensor, Tensor]  # keys and values of one layer


@dataclass(frozen=True)
class Sheet:
    """Distinct prompts without their lead as token ids, shortest first, each cut behind the beginning that it shares with others.

    `stems` are those beginnings, of `depth` tokens (0: of prompts that share nothing). `ids` is what follows a prompt's `stem`, up to its
    end token at `last`. `place` says which prompt belongs where.
    """

    stems: Int[Tensor, "stems begun"]
    depth: Int[Tensor, " stems"]
    ids: Int[Tensor, "distinct length"]
    last: Int[Tensor, " distinct"]
    stem: Int[Tensor, " distinct"]
    place: Int[Tensor, "classes prompts"]  # -1: padding

    def tokens(self) -> int:
        """Tokens behind the context that go through the tower, padding left out."""
        return int(self.depth.sum() + self.last.sum()) + len(self.last)

    def longest(self) -> int:
        """Tokens of the longest prompt, its stem with it."""
        return int((self.depth[self.stem] + self.last).max()) + 1

    def uncut(self) -> tuple[Int[Tensor, "distinct length"], Int[Tensor, " distinct"]]:
        """The ids of whole prompts, and the place of their end tokens."""
        depth = self.depth[self.stem]
        ids = F.pad(self.stems[self.stem], (0, self.ids.shape[1]))
        return ids.scatter(1, depth[:, None] + torch.arange(self.ids.shape[1]), self.ids), depth + self.last


class PromptTower:
    """Unit features of all prompts of all classes with context tokens between the start token and the prompt.

    A prompt that begins with the words `lead` loses them: the context takes their place. In another one the context goes in front.
    Because the tower is causal, the hidden states of start token and context are the same for all prompts and are computed once a
    context, and those of the words that prompts of a class begin with ("tern, which has ...") once a class; because it is pooled at the
    end token, prompts need no padding to the model's length. All of this is exact. The encoder stays as it is: its weights get no
    gradients. `n_tokens` is the number of context tokens, by default as many as the lead has. Raises ValueError when the encoder's text
    tower is not of this kind, or a prompt gets too long.
    """

    def __init__(self, encoder: Encoder, prompts: Sequence[Sequence[str]], *, lead: str, n_tokens: int | None = None) -> None:
        family = getattr(getattr(encoder.model, "config", None), "model_type", type(encoder.model).__name__)
        if family not in CAUSAL_FAMILIES:
            raise ValueError(
                f"context tokens need a causal text tower that is pooled at its end token ({', '.join(CAUSAL_FAMILIES)}); "
                f"{encoder.name} is of the family {family!r}. Choose a CLIP model (model=clip_vit_b32), or an adapter or method that needs "
                "no text tower"
            )
        self.tower, self.projection = _frozen(encoder.model.text_model), _frozen(encoder.model.text_projection)
        self.lead = encoder.tokenizer(lead)["input_ids"][1:-1]
        self.n_tokens = len(self.lead) if n_tokens is None else n_tokens
        if self.n_tokens < 1:
            raise ValueError(f"the context has one token or more, got {self.n_tokens} (words {lead!r})")
        rows = [[self._without_lead(encoder.tokenizer(text)["input_ids"]) for text in row] for row in prompts]
        self.start = torch.tensor(encoder.tokenizer(lead)["input_ids"][:1])
        self.all, self.labels = _sheet(rows), _sheet([row[:1] for row in rows])
        limit, longest = encoder.rule.context, 1 + self.n_tokens + self.all.longest()
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
        heavy = torch.is_grad_enabled() and len(context) * sheet.tokens() > self._tokens_in_memory()
        run = partial(checkpoint, use_reentrant=False) if heavy else _called

        parts = partial(_parts, room=self._tokens_in_memory() // len(context))
        begun = [run(self._stems, prefix, sheet.stems[part, : int(sheet.depth[part].max())]) for part in parts(sheet.depth)]
        stems = [tuple(_together(states) for states in zip(*layer, strict=True)) for layer in zip(*begun, strict=True)]
        features = []
        for part in parts(sheet.last + 1):
            last, stem = sheet.last[part], sheet.stem[part]
            ids = sheet.ids[part, : int(last.max()) + 1]
            features.append(run(self._suffixes, prefix, stems, stem, sheet.depth[stem][None], ids[None], last[None]))
        return torch.cat(features, 1)[:, sheet.place.clamp_min(0)] * (sheet.place >= 0)[..., None]

    def own_features(self, context: Float[Tensor, "classes tokens width"], sheet: Sheet) -> Float[Tensor, "classes prompts dim"]:
        """The prompts of each class on the sheet with the class's own context; padding is 0."""
        prefix, place = self._prefix(context), sheet.place.clamp_min(0)
        none = [(key[:, None, :, :0], value[:, None, :, :0]) for key, value in prefix]
        ids, last = (whole[place] for whole in sheet.uncut())
        features = self._suffixes(prefix, none, place[0] * 0, place * 0, ids, last)
        return features * (sheet.place >= 0)[..., None]

    def _without_lead(self, ids: list[int]) -> list[int]:
        begins = self.lead and ids[1 : 1 + len(self.lead)] == self.lead
        return ids[1 + len(self.lead) :] if begins else ids[1:]

    def _tokens_in_memory(self) -> int:
        layers, size = len(self.tower.encoder.layers), self.tower.embeddings.token_embedding.weight.element_size()
        return MEMORY // (layers * self.width * KEPT * size)

    def _prefix(self, context: Context) -> list[States]:
        """Keys and values (copies, heads, tokens, dim) of start token and context in each layer."""
        embeddings = self.tower.embeddings
        start = embeddings.token_embedding(self.start).expand(len(context), 1, -1)
        x = torch.cat([start, context], 1) + embeddings.position_embedding.weight[: 1 + context.shape[1]]
        states = []
        for layer in self.tower.encoder.layers:
            q, k, v = heads(layer, x, "qkv")
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = rest(layer, x, mixed)
            states.append((k, v))
        return states

    def _stems(self, prefix: list[States], ids: Int[Tensor, "stems begun"]) -> list[States]:
        """Keys and values (copies, stems, heads, tokens, dim) of what prompts begin with, behind the prefix."""
        first, place = 1 + self.n_tokens, torch.arange(ids.shape[1])
        embeddings = self.tower.embeddings
        x = embeddings.token_embedding(ids) + embeddings.position_embedding.weight[first : first + ids.shape[1]]
        x = x.expand(len(prefix[0][0]), -1, -1, -1)
        states = []
        for layer, before in zip(self.tower.encoder.layers, prefix, strict=True):
            q, k, v = heads(layer, x, "qkv")
            states.append((k, v))
            if layer is not self.tower.encoder.layers[-1]:
                x = rest(layer, x, _mixed(layer, q, k, v, before, later=place > place[:, None]))
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
        """Unit features (copies, prompts, dim) of what follows the prefix and each prompt's stem."""
        copies, length, begun = len(prefix[0][0]), ids.shape[2], int(depth.max())
        embeddings, layers, place = self.tower.embeddings, self.tower.encoder.layers, torch.arange(length)
        table = embeddings.position_embedding.weight
        position = (1 + self.n_tokens + depth[..., None] + place).clamp_max(len(table) - 1)  # padding may be beyond the table
        x = (embeddings.token_embedding(ids) + table[position]).expand(copies, -1, -1, -1)
        absent = torch.arange(begun) >= depth[..., None, None, None]

        def later(own: Tensor) -> Tensor:
            """Which keys do not count, of the stem's and the prompt's own."""
            return torch.cat([part.expand(*depth.shape, 1, own.shape[-2], -1) for part in (absent, own)], -1)

        def behind_stem(states: States, k: Tensor, v: Tensor) -> States:
            if not begun:
                return k, v
            key, value = (state.index_select(1, stem)[..., :begun, :] for state in states)
            return torch.cat([key, k], -2), torch.cat([value, v], -2)

        causal = later(place > place[:, None])
        for layer, before, states in zip(layers[:-1], prefix[:-1], stems[:-1], strict=True):
            q, k, v = heads(layer, x, "qkv")
            x = rest(layer, x, _mixed(layer, q, *behind_stem(states, k, v), before, causal))
        end = x.gather(2, last[..., None, None].expand(copies, -1, 1, x.shape[3]))  # nothing else of the last layer is read
        q, k, v = *heads(layers[-1], end, "q"), *heads(layers[-1], x, "kv")
        mixed = _mixed(layers[-1], q, *behind_stem(stems[-1], k, v), prefix[-1], later(place > last[:, :, None, None, None]))
        return F.normalize(self.projection(self.tower.final_layer_norm(rest(layers[-1], end, mixed).squeeze(2))), dim=-1)


def _parts(lengths: Int[Tensor, " rows"], room: int) -> list[slice]:
    """Rows of like length, shortest first, that are computed together: padded to little more than they are, and within the room."""
    starts, tokens = [0], 0
    for row, length in enumerate(lengths.tolist()):
        count = row - starts[-1]
        padded = length * (count + 1)
        if count == CHUNK or (count and padded > room) or (count >= FEW and padded > WASTE * (tokens + length)):
            starts.append(row)
            tokens = 0
        tokens += length
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def _together(parts: tuple[Tensor, ...]) -> Tensor:
    """States of several parts as those of one, padded to the longest."""
    longest = max(part.shape[3] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[3])) for part in parts], 1)


def _called(function: Callable, *args: object) -> object:
    return function(*args)


def _frozen(module: nn.Module) -> nn.Module:
    """The module with the same weights in memory, but without gradients of them."""
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()})


def _mixed(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, prefix: States, later: Tensor) -> Tensor:
    """Values of the prefix and of the prompt's tokens as the queries weigh them; those that come `later` do not count."""
    key, value = prefix
    before = torch.einsum("bphsd,bhnd->bphsn", q, key)
    within = (q @ k.transpose(-1, -2)).masked_fill(later, -torch.inf)
    weights = (torch.cat([before, within], -1) * layer.self_attn.scale).softmax(-1)
    return torch.einsum("bphsn,bhnd->bphsd", weights[..., : key.shape[2]], value) + weights[..., key.shape[2] :] @ v


def _sheet(rows: list[list[list[int]]]) -> Sheet:
    cut: dict[tuple[int, ...], tuple[int, ...]] = {}  # prompts and their stems
    for row in rows:
        prompts = [ids for ids in dict.fromkeys(map(tuple, row)) if ids not in cut]
        stem = _shared_beginning(prompts)
        cut |= {ids: stem if ids[: len(stem)] == stem else () for ids in prompts}
    stems = {ids: index for index, ids in enumerate(sorted({(), *cut.values()}, key=lambda ids: (len(ids), ids)))}
    distinct = sorted(cut, key=lambda ids: (len(ids) - len(cut[ids]), len(ids)))
    position = {ids: index for index, ids in enumerate(distinct)}
    place = torch.full((len(rows), max(map(len, rows))), -1)
    for c, row in enumerate(rows):
        place[c, : len(row)] = torch.tensor([position[tuple(ids)] for ids in row])
    suffixes, length = _padded([ids[len(cut[ids]) :] for ids in distinct])
    return Sheet(*_padded(list(stems)), suffixes, length - 1, torch.tensor([stems[cut[ids]] for ids in distinct]), place)


def _shared_beginning(prompts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The beginning that saves most tokens when prompts that have it compute it once; an end token is never shared."""
    counts = Counter(ids[:length] for ids in prompts for length in range(1, len(ids)))
    return max(counts, key=lambda stem: (counts[stem] - 1) * len(stem)) if counts.total() > len(counts) else ()


def _padded(rows: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """The rows as one tensor, padded behind with 0, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded, lengths
