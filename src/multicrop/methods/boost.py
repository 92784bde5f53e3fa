"""BoostAdapter (Zhang et al., NeurIPS 2024): TDA whose positive cache also holds, for one image, that image's own confident views."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from multicrop.aggregators.confidence import kept_views
from multicrop.methods.base import by_confidence, chosen_views, entropy
from multicrop.methods.tda import Tda
from multicrop.text import TextBank


class BoostAdapter(Tda):
    """TDA, read after the max(1, floor(K share)) lowest-entropy views have entered a copy of the positive cache that is then dropped.

    A view's class and entropy (nats) come from its own label-prompt logits, an image's from the text logits. The copy keeps, of the
    stored entries and the views of each class, the size + `extra` of lowest entropy; a stored one goes before an equal view.

    `boosters` are the views that may enter; all other knobs (`tda`) are Tda's. Follows the authors' code, where the key is the global
    view or, on ImageNet's variants, the mean of the confident views; `extra` ("delta") and beta are set for each data set, and the
    negative queue is first in, first out. Here TDA's rules and fixed knobs stay; `extra` 3 is our choice.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        boosters: str,
        share: float,
        extra: int,
        **tda: object,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, **tda)
        self.boosters, self.share, self.extra = boosters, share, extra

    def _positive(self, key: Float[Tensor, " dim"], views: Float[Tensor, "views dim"]) -> Float[Tensor, " classes"]:
        views = chosen_views(views[None], self.boosters)[0]
        logits = self.view_logits(views)
        order = by_confidence(logits)[: kept_views(len(views), self.share)]
        views, logits = views[order], logits[order]
        own = F.one_hot(logits.argmax(-1), logits.shape[-1]).T.bool()
        own_entropy = entropy(logits.softmax(-1)).expand_as(own).masked_fill(~own, torch.inf)
        own_affinity = torch.exp(-self.positive["beta"] * (1 - views @ key)) * own

        entropies = torch.cat([self.positive_entropy, own_entropy], 1)
        affinity = torch.cat([self._affinity("positive", key), own_affinity], 1)
        best = entropies.argsort(dim=1, stable=True)[:, : int(self.positive["size"]) + self.extra]
        return affinity.gather(1, best).sum(1)
