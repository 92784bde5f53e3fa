"""TDA, training-free dynamic adapter (Karmanov et al., CVPR 2024): caches of confident and of uncertain test images."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop import pools
from multicrop.aggregators import Logits, Views, select_views
from multicrop.methods.base import Method


class Tda(Method):
    """logits + a_p exp(-b_p (1 - cos)) from the positive cache - a_n exp(-b_n (1 - cos)) from the negative one.

    Both caches keep the lowest-entropy images of each predicted class; an image enters before it is scored, and a full queue replaces its
    worst entry only by a strictly lower entropy. The negative cache takes images whose entropy, as a share of ln C, lies between the two
    bounds; an entry counts against every class whose stored probability lies between `mask_low` and 1. Key: the normalised mean view (the
    authors average without re-normalising). Their entropy bounds 0.2 and 0.5 divide nats by log2 C, hence the defaults 0.2885 and 0.7213.
    """

    def __init__(
        self,
        *,
        n_classes: int,
        dim: int,
        positive: Mapping[str, float | int],
        negative: Mapping[str, float | int],
        view_set: str,
    ) -> None:
        super().__init__()
        self.positive, self.negative, self.view_set = dict(positive), dict(negative), view_set
        for sign, knobs in (("positive", self.positive), ("negative", self.negative)):
            size = int(knobs["size"])
            self.register_buffer(f"{sign}_keys", torch.zeros(n_classes, size, dim))
            self.register_buffer(f"{sign}_entropy", torch.full((n_classes, size), torch.inf))
        self.register_buffer("negative_mask", torch.zeros(n_classes, int(self.negative["size"]), n_classes))

    def reset(self) -> None:
        """Empty both caches."""
        for sign in ("positive", "negative"):
            getattr(self, f"{sign}_entropy").fill_(torch.inf)

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The images one after the other: insert, then read."""
        keys = pools.mean(select_views(views, self.view_set))
        return torch.stack([self._one(key, text) for key, text in zip(keys, logits, strict=True)])

    def _one(self, key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        probability = logits.softmax(0)
        entropy = -(probability * probability.clamp_min(1e-12).log()).sum()
        share = float(entropy) / math.log(len(logits)) if len(logits) > 1 else 0.0
        label = int(probability.argmax())
        self._insert("positive", label, key, entropy)
        if self.negative["entropy_low"] < share < self.negative["entropy_high"]:
            slot = self._insert("negative", label, key, entropy)
            if slot is not None:
                inside = (probability > self.negative["mask_low"]) & (probability < 1)
                self.negative_mask[label, slot] = inside.float()
        positive = self._affinity("positive", key).sum(1)
        negative = torch.einsum("cs,csk->k", self._affinity("negative", key), self.negative_mask)
        return logits + self.positive["alpha"] * positive - self.negative["alpha"] * negative

    def _insert(self, sign: str, label: int, key: Tensor, entropy: Tensor) -> int | None:
        """The slot that the image took, or None when it was not confident enough for a full queue."""
        queue = getattr(self, f"{sign}_entropy")[label]
        slot = int(queue.argmax())
        if not entropy < queue[slot]:
            return None
        queue[slot] = entropy
        getattr(self, f"{sign}_keys")[label, slot] = key
        return slot

    def _affinity(self, sign: str, key: Tensor) -> Float[Tensor, "classes slots"]:
        """exp(-beta (1 - cos)) to every cached key; zero for empty slots."""
        cosine = getattr(self, f"{sign}_keys") @ key
        filled = getattr(self, f"{sign}_entropy").isfinite()
        beta = getattr(self, sign)["beta"]
        return torch.exp(-beta * (1 - cosine)) * filled
