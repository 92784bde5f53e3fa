"""Prompts as token ids, distinct ones once, with the beginnings that prompts of a class share; and how they are divided into chunks."""

from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256  # prompts of similar length that are computed together, at most
FEW, WASTE = 32, 1.25  # from so many prompts on, padded tokens over tokens at most


@dataclass(frozen=True)
class PromptTokens:
    """Distinct prompts without their lead words as token ids, shortest first, each split into a stem that others share and the rest.

    `stems` holds the stems, of `depth` tokens (0 for prompts that share nothing). `ids` holds what follows the stem with the number `stem`,
    up to the end token at `last`. `place` is the row of each prompt of each class.
    """

    stems: Int[Tensor, "stems begun"]
    depth: Int[Tensor, " stems"]
    ids: Int[Tensor, "distinct length"]
    last: Int[Tensor, " distinct"]
    stem: Int[Tensor, " distinct"]
    place: Int[Tensor, "classes prompts"]  # -1: padding

    def tokens(self) -> int:
        """Tokens after the context that go through the tower, without padding."""
        return int(self.depth.sum() + self.last.sum()) + len(self.last)

    def longest(self) -> int:
        """Tokens of the longest prompt, including its stem."""
        return int((self.depth[self.stem] + self.last).max()) + 1

    def uncut(self) -> tuple[Int[Tensor, "distinct length"], Int[Tensor, " distinct"]]:
        """The ids of whole prompts, and the positions of their end tokens."""
        depth = self.depth[self.stem]
        ids = F.pad(self.stems[self.stem], (0, self.ids.shape[1]))
        return ids.scatter(1, depth[:, None] + torch.arange(self.ids.shape[1]), self.ids), depth + self.last


def prompt_tokens(rows: list[list[list[int]]]) -> PromptTokens:
    """The token ids of the prompts of each class, stored once per distinct prompt."""
    cut: dict[tuple[int, ...], tuple[int, ...]] = {}  # prompt -> its stem
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
    return PromptTokens(*_padded(list(stems)), suffixes, length - 1, torch.tensor([stems[cut[ids]] for ids in distinct]), place)


def chunks(lengths: Int[Tensor, " rows"], room: int) -> list[slice]:
    """Slices of rows of similar length, shortest first, with little padding and at most `room` tokens each."""
    starts, tokens = [0], 0
    for row, length in enumerate(lengths.tolist()):
        count = row - starts[-1]
        padded = length * (count + 1)
        if count == CHUNK or (count and padded > room) or (count >= FEW and padded > WASTE * (tokens + length)):
            starts.append(row)
            tokens = 0
        tokens += length
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(lengths)], strict=True)]


def _shared_beginning(prompts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The beginning that saves most tokens when it is computed once; an end token is never shared."""
    counts = Counter(ids[:length] for ids in prompts for length in range(1, len(ids)))
    return max(counts, key=lambda stem: (counts[stem] - 1) * len(stem)) if counts.total() > len(counts) else ()


def _padded(rows: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """The rows as one tensor, padded on the right with 0, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded, lengths
