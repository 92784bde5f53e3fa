"""TDA, training-free dynamic adapter (Karmanov et al., CVPR 2024): caches of confident and of uncertain test images."""

import math
from typing import Annotated, ClassVar, NamedTuple, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators import Logits, Views, pools
from multicrop.config.ranges import Count, Fraction, KeyViews, OneOf, Share, Weight
from multicrop.methods.base import Method, chosen_views, entropy
from multicrop.text import TextBank

SOURCES = ("logits", "views")


class Cache(TypedDict):
    """The knobs of a cache: entries per class, weight, and decay with distance."""

    size: Count
    alpha: Weight
    beta: Weight


class UncertainCache(Cache):
    """Also the bounds of an image's entropy, as shares of ln C, and the probability from which a class is masked."""

    entropy_low: Fraction
    entropy_high: Fraction
    mask_low: Fraction


POSITIVE: Cache = {"size": 3, "alpha": 2.0, "beta": 5.0}
NEGATIVE: UncertainCache = {"size": 2, "alpha": 0.117, "beta": 1.0, "entropy_low": 0.2885, "entropy_high": 0.7213, "mask_low": 0.03}


class SeenImage(NamedTuple):
    """What the caches read of an image: its key, its text logits, and the probabilities that entropy and mask come from."""

    key: Float[Tensor, " dim"]
    logits: Float[Tensor, " classes"]
    probability: Float[Tensor, " classes"]


class Tda(Method):
    """Compute logits + a_p exp(-b_p (1 - cos)) from the positive cache - a_n exp(-b_n (1 - cos)) from the negative cache.

    Both caches keep the lowest-entropy images of each predicted class. An image enters before it is scored; in a full queue it replaces the
    entry with the highest entropy if its own is strictly lower. The negative cache takes images whose entropy, as a share of ln C, lies
    between two bounds; an entry counts against every class whose stored probability lies between `mask_low` and 1.

    Source: Karmanov et al., CVPR 2024. The authors' entropy bounds 0.2 and 0.5 divide nats by log2 C, hence the defaults 0.2885 and 0.7213.
    Where the authors use several views (ImageNet-A, -V, -R and -Sketch), they keep the most confident ones: key and text logits are the
    means of their features and logits, and entropy and mask come from the mean of their probabilities. That is ``pseudo_label="views"``.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        positive: ``size`` (entries per class), ``alpha`` (weight) and ``beta`` (decay with distance) of the positive cache.
        negative: The same of the negative cache, with ``entropy_low``, ``entropy_high`` (shares of ln C) and ``mask_low`` (probability).
        view_set: The views whose mean is the key, ``"global"``, ``"all"`` or ``"crops"``.
        renormalise: Whether the mean is normalised; it is not in the authors' code.
        pseudo_label: ``"logits"``: text logits, label, entropy and mask are those of the aggregator. ``"views"``: they and the key, the
            bare mean, are those of the most confident views (the authors'); the aggregator, `view_set` and `renormalise` are not read.
        share: Share of the views that is kept for ``"views"``, lowest entropy first.

    Raises:
        ValueError: If `pseudo_label` is neither.
    """

    episodic: ClassVar[bool] = False
    positive_keys: Tensor
    positive_entropy: Tensor
    negative_keys: Tensor
    negative_entropy: Tensor
    negative_mask: Tensor

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        positive: Cache = POSITIVE,
        negative: UncertainCache = NEGATIVE,
        view_set: KeyViews = "all",
        renormalise: bool = True,
        pseudo_label: Annotated[str, OneOf(SOURCES)] = "logits",
        share: Share = 0.1,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if pseudo_label not in SOURCES:
            raise ValueError(f"method.pseudo_label is logits or views, got {pseudo_label!r}")
        self.pseudo_label, self.share = pseudo_label, share
        self.positive, self.negative = positive.copy(), negative.copy()
        self.view_set, self.renormalise = view_set, renormalise
        label = text.label
        n_classes, dim = label.shape
        for sign, size in (("positive", positive["size"]), ("negative", negative["size"])):
            self.register_buffer(f"{sign}_keys", label.new_zeros(n_classes, size, dim))
            self.register_buffer(f"{sign}_entropy", label.new_full((n_classes, size), torch.inf))
        self.register_buffer("negative_mask", label.new_zeros(n_classes, negative["size"], n_classes))

    def reset(self) -> None:
        """Empty both caches."""
        for sign in ("positive", "negative"):
            getattr(self, f"{sign}_entropy").fill_(torch.inf)

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Insert each image into the caches, then score it."""
        chosen = chosen_views(views, self.view_set)
        keys = pools.mean(chosen) if self.renormalise else chosen.mean(1)
        return torch.stack([self._one(*image) for image in zip(views, keys, logits, strict=True)])

    def _one(
        self, views: Float[Tensor, "views dim"], key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]
    ) -> Float[Tensor, " classes"]:
        image = SeenImage(key, logits, logits.softmax(0)) if self.pseudo_label == "logits" else self._seen_by_views(views)
        self._insert_image(image)
        negative = torch.einsum("cs,csk->k", self._affinity("negative", image.key), self.negative_mask)
        return image.logits + self.positive["alpha"] * self._positive(image.key, views) - self.negative["alpha"] * negative

    def _seen_by_views(self, views: Float[Tensor, "views dim"]) -> SeenImage:
        """Key and logits as means over the confident views, and the mean of their probabilities."""
        kept = self.confident_views(views, self.share)
        return SeenImage(kept.features.mean(0), kept.logits.mean(0), kept.logits.softmax(1).mean(0))

    def _positive(self, key: Float[Tensor, " dim"], views: Float[Tensor, "views dim"]) -> Float[Tensor, " classes"]:
        """The sum of the affinities to the confident entries of each class."""
        return self._affinity("positive", key).sum(1)

    def _insert_image(self, image: SeenImage) -> None:
        """Insert the image into the positive cache, and into the negative one if its entropy lies between the bounds."""
        key, probability = image.key, image.probability
        nats, label = entropy(probability), int(image.logits.argmax())
        share = float(nats) / math.log(len(probability)) if len(probability) > 1 else 0.0
        insert(self.positive_keys[label], self.positive_entropy[label], key, nats)
        if self.negative["entropy_low"] < share < self.negative["entropy_high"]:
            slot = insert(self.negative_keys[label], self.negative_entropy[label], key, nats)
            if slot is not None:
                self.negative_mask[label, slot] = ((probability > self.negative["mask_low"]) & (probability < 1)).float()

    def _affinity(self, sign: str, key: Float[Tensor, " dim"]) -> Float[Tensor, "classes slots"]:
        """exp(-beta (1 - cos)) to every cached key; zero for empty slots."""
        cosine = getattr(self, f"{sign}_keys") @ key
        filled = getattr(self, f"{sign}_entropy").isfinite()
        beta = getattr(self, sign)["beta"]
        return torch.exp(-beta * (1 - cosine)) * filled


def insert(
    keys: Float[Tensor, "slots dim"], entropies: Float[Tensor, " slots"], key: Float[Tensor, " dim"], nats: Float[Tensor, ""]
) -> int | None:
    """Insert a key into the queue of one class in place of the entry with the highest entropy, if its own is strictly lower.

    Args:
        keys: Stored keys, shape (slots, dim); changed in place.
        entropies: Their entropies, shape (slots,), infinite for empty slots; changed in place.
        key: The new key, shape (dim,).
        nats: Its entropy in nats.

    Returns:
        The slot that the key took, or None.
    """
    slot = int(entropies.argmax())
    if not nats < entropies[slot]:
        return None
    entropies[slot] = nats
    keys[slot] = key
    return slot
