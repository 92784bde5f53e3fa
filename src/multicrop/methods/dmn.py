"""DMN, the dynamic memory of Dual Memory Networks (Zhang et al., CVPR 2024), in its zero-shot form: no static memory, nothing trained."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from multicrop import pools
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.confidence import kept_views
from multicrop.methods.base import Method, by_confidence, chosen_views, entropy
from multicrop.methods.tda import insert
from multicrop.prompts import TextBank


class Dmn(Method):
    """log((p + weight q) / (1 + weight)): p the softmax of the text logits, q that of the memory's logits s <f, m_c>.

    The memory holds the label prompt and up to `size` keys of each class; m_c = norm(sum_j exp(-beta (1 - <f, F_cj>)) F_cj) over the
    filled slots. An image enters before it is scored, under its pseudo-label; a full class replaces its worst entry only by a strictly
    lower entropy. f, the key and the query, is the normalised mean of the chosen views.

    `pseudo_label` = logits takes label and entropy from the text logits, as D&D plugs in; = views takes them from the mean probability of
    the max(1, floor(K share)) lowest-entropy views, which with view_set=global is DMN's own rule. The authors search the weight on the
    test labels; the fixed 1 is our choice. Raises ValueError for another `pseudo_label` or a negative weight.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        view_set: str,
        pseudo_label: str,
        share: float,
        size: int,
        beta: float,
        weight: float,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if pseudo_label not in ("logits", "views"):
            raise ValueError(f"method.pseudo_label is logits or views, got {pseudo_label!r}")
        if weight < 0:
            raise ValueError(f"method.weight of the memory is 0 or more, got {weight}")
        self.view_set, self.pseudo_label, self.share, self.beta, self.weight = view_set, pseudo_label, share, beta, weight
        n_classes, dim = text.label.shape
        self.register_buffer("keys", torch.zeros(n_classes, size, dim))
        self.register_buffer("entropies", torch.full((n_classes, size), torch.inf))

    def reset(self) -> None:
        """Empty the memory."""
        self.entropies.fill_(torch.inf)

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The images one after the other: insert, then read."""
        keys = pools.mean(chosen_views(views, self.view_set))
        return torch.stack([self._one(*image) for image in zip(views, keys, logits, strict=True)])

    def _one(
        self, views: Float[Tensor, "views dim"], key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]
    ) -> Float[Tensor, " classes"]:
        probability = logits.softmax(0) if self.pseudo_label == "logits" else self._view_probability(views)
        label = int(probability.argmax())
        insert(self.keys[label], self.entropies[label], key, entropy(probability))
        memory = self.logit_scale * self._read(key) @ key
        log_weight = math.log(self.weight) if self.weight else -math.inf
        return torch.logaddexp(logits.log_softmax(0), memory.log_softmax(0) + log_weight) - math.log1p(self.weight)

    def _view_probability(self, views: Float[Tensor, "views dim"]) -> Float[Tensor, " classes"]:
        """The mean probability of the confident views."""
        logits = self.view_logits(views)
        return logits[by_confidence(logits)[: kept_views(len(views), self.share)]].softmax(-1).mean(0)

    def _read(self, key: Float[Tensor, " dim"]) -> Float[Tensor, "classes dim"]:
        """m_c of every class."""
        weight = torch.exp(-self.beta * (1 - self.keys @ key)) * self.entropies.isfinite()
        label_weight = torch.exp(-self.beta * (1 - self.text.label @ key))
        total = torch.einsum("cs,csd->cd", weight, self.keys) + label_weight[:, None] * self.text.label
        return F.normalize(total, dim=-1)
