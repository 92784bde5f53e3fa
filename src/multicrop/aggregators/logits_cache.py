"""Logits of an aggregator that the jobs of a sweep share: a fusion weight, an adapter or a seed changes none of them."""

import time

import torch
import xxhash
from torch import Tensor

from multicrop.aggregators.base import Logits, Views
from multicrop.aggregators.declared import AggregatorFunction
from multicrop.aggregators.score import Scorer
from multicrop.text import TextBank

MAX_BYTES = 2**28  # of the logits of one aggregator


class LogitsCache:
    """Logits of one aggregator against one text bank, by the bytes of the views; logits beyond `max_bytes` are not stored.

    Args:
        max_bytes: Most bytes of logits.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._entries: dict[tuple, tuple[Tensor, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def key(views: Views) -> tuple:
        """What identifies a batch of views: a hash of its bytes, its shape, and whether inference mode is on."""
        whole = views.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return xxhash.xxh3_128_digest(whole.numpy().data), *views.shape, torch.is_inference_mode_enabled()

    def get(self, key: tuple) -> tuple[Tensor, float] | None:
        """The logits under a key and the seconds that they took to compute; None where there are none."""
        return self._entries.get(key)

    def put(self, key: tuple, logits: Logits, seconds: float) -> None:
        """Store a copy of logits, unless they exceed the bytes that are left."""
        if key not in self._entries and self.bytes + logits.nbytes <= self.max_bytes:
            self._entries[key] = (logits.cpu().clone(), seconds)
            self.bytes += logits.nbytes


class CachedScorer(Scorer):
    """A Scorer that reads the aggregator's logits from a cache, and adds those that it computes.

    Cached logits equal computed ones to the last bit. The cache is not used where gradients are recorded, or where an adapter or method
    has replaced the prompts or the aggregator.

    Args:
        text: See `Scorer`.
        logit_scale: See `Scorer`.
        aggregator: See `Scorer`.
        fusion_weight: See `Scorer`.
        cache: The logits of this aggregator against this text bank at this logit scale.
    """

    def __init__(
        self, text: TextBank, logit_scale: float, aggregator: AggregatorFunction, fusion_weight: float, *, cache: LogitsCache
    ) -> None:
        super().__init__(text, logit_scale, aggregator, fusion_weight)
        self.cache, self.own = cache, (self.text, self.aggregator)

    def local_logits(self, views: Views) -> Logits:
        """The aggregator's logits."""
        if torch.is_grad_enabled() or self.text is not self.own[0] or self.aggregator is not self.own[1]:
            return super().local_logits(views)
        key = self.cache.key(views)
        if found := self.cache.get(key):
            logits, seconds = found
            self.spared += seconds
            return logits.to(views.device, copy=True)
        started = time.perf_counter()
        logits = super().local_logits(views)
        self.cache.put(key, logits, time.perf_counter() - started)
        return logits
