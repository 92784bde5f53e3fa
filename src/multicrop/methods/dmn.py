"""DMN, the dynamic memory of Dual Memory Networks (Zhang et al., CVPR 2024), in its zero-shot form: no static memory, nothing trained."""

import math
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from multicrop.aggregators import Logits, Views, pools
from multicrop.aggregators.base import entropies
from multicrop.aggregators.confidence import kept_views
from multicrop.config.ranges import Count, KeyViews, OneOf, Share, Weight
from multicrop.methods.base import Method, chosen_views
from multicrop.methods.queues import insert
from multicrop.text import TextBank

PSEUDO_LABELS = ("logits", "views")
GROUP = 32  # images whose similarities to the memory are computed together


class Dmn(Method):
    """Compute log((p + weight q) / (1 + weight)), with p the softmax of the text logits and q that of the memory's logits s <f, m_c>.

    The memory holds the label prompt and up to `size` keys per class; m_c = norm(sum_j exp(-beta (1 - <f, F_cj>)) F_cj) over the filled
    slots. An image enters before it is scored, under its pseudo-label; in a full class it replaces the entry with the highest entropy if
    its own is strictly lower. f, the key and the query, is the normalised mean of the chosen views.

    The norm of the weighted sum is computed from the stored similarities of a class's entries to each other. A group of images is read
    together; an insertion changes what later images read of its class only. An image costs 2 D operations per key (52 million with 1,000
    full classes and D = 512), which is most of its time.

    Source: Zhang et al., CVPR 2024, dynamic memory only (no static memory, nothing is trained). The authors search the weight on the test
    labels; the fixed 1 is our choice.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        view_set: The views whose mean is f, ``"global"`` (DMN's), ``"all"`` or ``"crops"``.
        pseudo_label: Source of label and entropy. ``"logits"``: the text logits; ``"views"``: the mean probability of the
            max(1, floor(K share)) lowest-entropy views, which with view_set ``"global"`` is DMN's rule.
        share: Share of the views for ``"views"``.
        size: Keys per class.
        beta: Decay of a key's weight with its distance.
        weight: Weight of the memory's probabilities, 0 or more.

    Raises:
        ValueError: If `pseudo_label` is neither, or the weight is negative.
    """

    episodic: ClassVar[bool] = False
    keys: Tensor
    entropies: Tensor
    within: Tensor

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        view_set: KeyViews = "all",
        pseudo_label: Annotated[str, OneOf(PSEUDO_LABELS)] = "logits",
        share: Share = 0.1,
        size: Count = 50,
        beta: Weight = 5.5,
        weight: Weight = 1.0,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if pseudo_label not in PSEUDO_LABELS:
            raise ValueError(f"method.pseudo_label is logits or views, got {pseudo_label!r}")
        if weight < 0:
            raise ValueError(f"method.weight of the memory is 0 or more, got {weight}")
        self.view_set, self.pseudo_label, self.share, self.beta, self.weight = view_set, pseudo_label, share, beta, weight
        label = text.label
        n_classes, dim = label.shape
        self.register_buffer("keys", label.new_zeros(1 + size, n_classes, dim))  # slot 0: the label prompts
        self.register_buffer("entropies", label.new_full((n_classes, size), torch.inf))
        self.register_buffer("within", label.new_zeros(n_classes, 1 + size, 1 + size))  # similarities of the entries of a class
        self.reset()

    def reset(self) -> None:
        """Empty the memory except for the label prompts."""
        self.keys[0] = self.text.label
        self.entropies.fill_(torch.inf)
        self.within[:, 0, 0] = 1

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Insert each image into the memory, then score it."""
        return torch.cat([self._group(*part) for part in zip(views.split(GROUP), logits.split(GROUP), strict=True)])

    def _group(self, views: Views, logits: Logits) -> Logits:
        keys = pools.mean(chosen_views(views, self.view_set))
        log_p = logits.log_softmax(1)
        source = log_p if self.pseudo_label == "logits" else self._view_probability(views)
        read = self._read(keys, source.argmax(1), entropies(source))
        log_weight = math.log(self.weight) if self.weight else -math.inf
        return torch.logaddexp(log_p, (self.logit_scale * read).log_softmax(1) + log_weight) - math.log1p(self.weight)

    def _view_probability(self, views: Views) -> Logits:
        """The logarithm of the mean probability of the confident views, up to a constant."""
        logits = self.view_logits(views)
        order = entropies(logits).argsort(dim=1, stable=True)[:, : kept_views(views.shape[1], self.share), None]
        return logits.gather(1, order.expand(-1, -1, logits.shape[2])).log_softmax(-1).logsumexp(1)

    def _read(
        self, keys: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"], nats: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """<f, m_c>, each image after its own insertion and before that of the next."""
        filled = self.entropies.isfinite().sum(1) + labels.bincount(minlength=len(self.entropies))
        slots = 1 + min(int(filled.max()), self.entropies.shape[1])
        similarity = (self.keys[:slots].flatten(0, 1) @ keys.T).unflatten(0, (slots, -1)).transpose(0, 1)
        read = self._similarity(similarity, slice(None))
        for image, label in enumerate(labels.tolist()):
            slot = insert(self.keys[1:, label], self.entropies[label], keys[image], nats[image])
            if slot is not None:
                similarity[label, 1 + slot] = keys @ keys[image]
                self.within[label, 1 + slot, :slots] = self.within[label, :slots, 1 + slot] = similarity[label, :, image]
                read[image:, label] = self._similarity(similarity[label, None, :, image:], slice(label, label + 1))[:, 0]
        return read

    def _similarity(self, similarity: Float[Tensor, "classes slots batch"], classes: slice) -> Float[Tensor, "batch classes"]:
        """<f, m_c> from the similarities of f to the slots: weighted sum over its norm."""
        slots = similarity.shape[1]
        filled = F.pad(self.entropies[classes, : slots - 1].isfinite(), (1, 0), value=True)
        weight = torch.exp(self.beta * (similarity - 1)) * filled[..., None]
        norm = (weight * (self.within[classes, :slots, :slots] @ weight)).sum(1)
        return ((weight * similarity).sum(1) / norm.sqrt()).T
