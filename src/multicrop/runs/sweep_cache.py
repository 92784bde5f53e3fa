"""What several runs in one process share: data set, model, texts, banks and logits of equal configurations are made once."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar
from weakref import ref

import torch
import xxhash
from torch import nn

from multicrop.files import content_hash

MOST = 4  # of each kind, the latest used
Part = TypeVar("Part")
Mark = list[tuple[object, ...]] | None


class SweepCache:
    """Parts of runs by kind and content, for jobs of a sweep or for a user's own loop.

    Example:
        >>> cache = SweepCache()
        >>> cache.get("texts", ["a cat"], list) is cache.get("texts", ["a cat"], list)
        True

    Args:
        most: How many parts of each kind are kept, the latest used.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._parts: dict[str, dict[str, tuple[object, ref[nn.Module] | None, tuple[Mark, Mark]]]] = {}

    def get(self, kind: str, key: object, make: Callable[[], Part], *, of: nn.Module | None = None) -> Part:
        """The part that an earlier run made, or a new one.

        A model whose weights were changed since is made anew, and so is what was made with it.

        Args:
            kind: What the part is, such as ``"model"``.
            key: The values that decide it.
            make: Makes the part.
            of: The model that the part is made with, if any.
        """
        parts = self._parts.setdefault(kind, {})
        name = content_hash(key)
        part, source, marks = parts.pop(name, (None, None, (None, None)))
        now = (weights_mark(part), weights_mark(of))  # hashed once per call where the part is found
        if part is None or (source and source()) is not of or marks != now:
            part = make()
            now = (weights_mark(part), weights_mark(of))
        parts[name] = (part, ref(of) if of is not None else None, now)
        while len(parts) > self.most:
            parts.pop(next(iter(parts)))
        return part  # type: ignore[return-value]

    def clear(self) -> None:
        """Release everything."""
        self._parts.clear()


@cache
def process_cache() -> SweepCache:
    """The cache that the jobs of a Hydra sweep are given in this process."""
    return SweepCache()


def weights_mark(part: object) -> Mark:
    """Name, type, shape and content of each parameter of a module, which change when the weights do; None for anything else."""
    if not isinstance(part, nn.Module):
        return None
    return [(name, id(p), p.dtype, p.shape, p.requires_grad, _digest(p)) for name, p in part.named_parameters()]


def _digest(values: torch.Tensor) -> int:
    content = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return xxhash.xxh3_64_intdigest(content.numpy().data)
