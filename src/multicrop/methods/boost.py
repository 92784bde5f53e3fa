"""BoostAdapter (Zhang et al., NeurIPS 2024): TDA whose positive cache temporarily holds the confident views of the scored image."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from multicrop.config.ranges import KeyViews, Natural, Share
from multicrop.methods.base import chosen_views, entropy
from multicrop.methods.tda import NEGATIVE, POSITIVE, Cache, Tda, UncertainCache
from multicrop.text import TextBank


class BoostAdapter(Tda):
    """TDA that is read after the max(1, floor(K share)) lowest-entropy views have entered a temporary copy of the positive cache.

    The class and entropy (nats) of a view come from its own label-prompt logits, those of an image from the text logits. The copy keeps,
    among the stored entries and the views of each class, the size + `extra` with the lowest entropy; at equal entropy a stored entry comes
    first.

    Source: Zhang et al., NeurIPS 2024. In the authors' code the key is the global view or, on ImageNet's variants, the mean of the
    confident views; `extra` ("delta") and beta are set per data set, and the negative queue is first in, first out. Here the rules and
    fixed hyper-parameters are TDA's; `extra` 3 is our choice.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        positive: See `Tda`, as the next three.
        negative: See `Tda`.
        view_set: See `Tda`.
        renormalise: See `Tda`.
        boosters: The views that may enter, ``"global"``, ``"all"`` or ``"crops"``.
        share: Share of the boosters that enter, lowest entropy first.
        extra: Slots per class above ``positive["size"]`` while an image is scored.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        positive: Cache = POSITIVE,
        negative: UncertainCache = NEGATIVE,
        view_set: KeyViews = "all",
        boosters: KeyViews = "all",
        share: Share = 0.1,
        extra: Natural = 3,
        renormalise: bool = True,
    ) -> None:
        cache = {"positive": positive, "negative": negative}
        super().__init__(text=text, logit_scale=logit_scale, view_set=view_set, renormalise=renormalise, **cache)
        self.boosters, self.share, self.extra = boosters, share, extra

    def _positive(
        self, affinity: Float[Tensor, "classes slots"], key: Float[Tensor, " dim"], views: Float[Tensor, "views dim"]
    ) -> Float[Tensor, " classes"]:
        views = chosen_views(views[None], self.boosters)[0]
        views, logits = self.confident_views(views, self.share)
        own = F.one_hot(logits.argmax(-1), logits.shape[-1]).T.bool()
        own_entropy = entropy(logits.softmax(-1)).expand_as(own).masked_fill(~own, torch.inf)
        own_affinity = torch.exp(-self.positive["beta"] * (1 - views @ key)) * own

        entropies = torch.cat([self.positive_entropy, own_entropy], 1)
        affinity = torch.cat([affinity, own_affinity], 1)
        best = entropies.argsort(dim=1, stable=True)[:, : self.positive["size"] + self.extra]
        return affinity.gather(1, best).sum(1)
