"""TDA, training-free dynamic adapter (Karmanov et al., CVPR 2024): caches of confident and of uncertain test images."""

import math
from typing import Annotated, ClassVar, NamedTuple, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators import Logits, Views, pools
from multicrop.config.ranges import Count, Fraction, KeyViews, OneOf, Share, Weight
from multicrop.methods.base import Method, chosen_views, entropy
from multicrop.methods.queues import Affinities
from multicrop.text import TextBank

SOURCES = ("logits", "views")
GROUP = 32  # images whose affinities to the caches are computed together


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


class SeenImages(NamedTuple):
    """What the caches read of images: their keys, their text logits, and the probabilities that entropy and mask come from."""

    keys: Float[Tensor, "batch dim"]
    logits: Logits
    probability: Float[Tensor, "batch classes"]


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
        return torch.cat([self._group(*part) for part in zip(views.split(GROUP), logits.split(GROUP), strict=True)])

    def _group(self, views: Views, logits: Logits) -> Logits:
        """Score images whose affinities to the caches are computed together; an insertion changes what later ones read of its entry."""
        seen = self._seen(views, logits)
        positive, negative = (
            Affinities(getattr(self, f"{sign}_keys"), getattr(self, f"{sign}_entropy"), seen.keys, getattr(self, sign)["beta"])
            for sign in ("positive", "negative")
        )
        nats, masks, confident = entropy(seen.probability), [], []
        shares = (nats.double() / math.log(max(2, logits.shape[1]))).tolist()
        for image, label in enumerate(seen.logits.argmax(1).tolist()):
            positive.insert(image, label, nats[image])
            bounds = self.negative["entropy_low"], self.negative["entropy_high"]
            if bounds[0] < shares[image] < bounds[1] and negative.insert(image, label, nats[image]):
                probability = seen.probability[image]
                masks.append((probability > self.negative["mask_low"]) & (probability < 1))
            confident.append(self._positive(positive.of(image), seen.keys[image], views[image]))
        against = self._negative(negative, masks)
        return seen.logits + self.positive["alpha"] * torch.stack(confident) - self.negative["alpha"] * against

    def _seen(self, views: Views, logits: Logits) -> SeenImages:
        if self.pseudo_label == "logits":
            chosen = chosen_views(views, self.view_set)
            return SeenImages(pools.mean(chosen) if self.renormalise else chosen.mean(1), logits, logits.softmax(1))
        kept = [self.confident_views(own, self.share) for own in views]
        means = [(one.features.mean(0), one.logits.mean(0), one.logits.softmax(1).mean(0)) for one in kept]
        return SeenImages(*(torch.stack(values) for values in zip(*means, strict=True)))

    def _positive(
        self, affinity: Float[Tensor, "classes slots"], key: Float[Tensor, " dim"], views: Float[Tensor, "views dim"]
    ) -> Float[Tensor, " classes"]:
        """The sum of an image's affinities to the confident entries of each class."""
        return affinity.sum(1)

    def _negative(self, read: Affinities, masks: list[Tensor]) -> Float[Tensor, "batch classes"]:
        """The affinities to the uncertain entries, summed over the entries that mask a class; the masks of new entries are stored."""
        stored = self.negative_mask.flatten(0, 1)
        if not masks:
            return read.affinity @ stored
        new, own = torch.stack(masks).to(stored), read.of_insertions()
        result = read.affinity @ stored + own @ new
        for place, mask in zip(read.places, new, strict=True):
            stored[place] = mask
        return result
