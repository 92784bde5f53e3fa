"""TIMO and TIMO-S (Li et al., AAAI 2025): prompts weighted by the support images, and prompts as samples of the discriminants."""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from multicrop.adapters.base import Examples, class_sums, pooled, samples
from multicrop.adapters.gda import discriminants
from multicrop.adapters.selection import Search, SelectedAdapter, select
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Samples, TextSet, ViewSet, Weight
from multicrop.text import TextBank

Linear = tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]


class Timo(SelectedAdapter):
    """Compute (1 - guided) * logits + guided * logit_scale <f, w_c> + alpha (f W + b)_c.

    With a_c the normalised mean of the pooled support images of class c and r_cp = <a_c, T_cp> for its prompts T_cp, the image-guided text
    is w_c = norm(sum_p softmax_p(gamma r_cp / |r_c|) T_cp). (W, b) are discriminants as in `Gda`, whose samples are all views of the
    support and, for each class, its first prompts in descending order of r, each multiplied by its r_cp: `prompt_share` of the class's
    prompts, above 1 from the beginning of the list again.

    Source: Li et al., AAAI 2025. Their logits are f w + (f W + b) / alpha_theirs, so that alpha = logit_scale / alpha_theirs here; guided =
    1 is theirs, guided = 0 keeps the aggregator's logits. They cut all classes to the prompts of the class that has fewest, and use that
    number or up to twice as many; here it is a share of each class's own number. Where gamma is searched, it is chosen first, for the
    accuracy of the guided text alone, as in TIMO-S. The authors choose on the complete validation split (for ImageNet the test set).

    Args:
        score: The run's aggregator, fused with the global view.
        text_set: The prompts T, ``"label"``, ``"descriptions"``, ``"local"``, ``"global"``, ``"both"`` or ``"all"``.
        view_set: The views that are samples, and whose mean is the query, ``"all"`` or ``"crops"``.
        samples: ``"views"``: a sample is a single view, in place of the authors' ten augmentations. ``"images"``: a pooled image.
        search: Values of gamma, prompt_share, guided and alpha to try, see `SelectedAdapter`.
        **knobs: gamma (sharpness of the prompts' weights), prompt_share (0-2), guided (0-1) and alpha (weight of the discriminants).

    Raises:
        ValueError: If a prompt_share is above 2 or a guided above 1. In `fit`, if a class has no support image.
    """

    def __init__(
        self, *, score: Score, text_set: TextSet, view_set: ViewSet, samples: Samples, search: Search = None, **knobs: Weight
    ) -> None:
        super().__init__(score=score, search=search, **knobs)
        if any(point["prompt_share"] > 2 or point["guided"] > 1 for point in self.candidates):
            raise ValueError(
                "adapter.prompt_share lies in 0-2 and adapter.guided in 0-1, in adapter.search too, "
                f"got {knobs['prompt_share']}, {knobs['guided']} and {dict(search or {})}"
            )
        self.text_set, self.view_set, self.samples = text_set, view_set, samples
        self.guided_texts: dict[float | int, Float[Tensor, "classes dim"]] = {}  # by gamma
        self.discriminants: dict[float | int, Linear] = {}  # by prompt_share

    def learn(self, support: Examples) -> None:
        """Compute the guided text of each gamma and the discriminants of each prompt_share among the candidates."""
        text, keys = self.text.select(self.text_set), pooled(support.views, self.view_set)
        sums, _ = class_sums(keys, support.labels, len(text.mask))
        likeness = (text.features @ F.normalize(sums, dim=-1)[:, :, None])[..., 0].masked_fill(~text.mask, 0.0)
        self.guided_texts = {gamma: guided_text(text, likeness, gamma) for gamma in self._values("gamma")}
        images = samples(support, self.view_set, self.samples)
        self.discriminants = {
            share: discriminants(*with_prompts(images, text, likeness, share), len(text.mask)) for share in self._values("prompt_share")
        }

    def fit(self, support: Examples, validation: Examples) -> None:
        """Learn, select gamma for the guided text alone where it is searched, then select the other hyper-parameters."""
        if len(gammas := self._values("gamma")) > 1:
            self.learn(support)
            queries = pooled(validation.views, self.view_set)
            found = select([{"gamma": gamma} for gamma in gammas], lambda gamma: self._guided_logits(queries, gamma), validation)
            self.candidates = [point for point in self.candidates if point["gamma"] == found["chosen"]["gamma"]]
        super().fit(support, validation)

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return text logits plus discriminants as a function of the four hyper-parameters."""
        queries = pooled(views, self.view_set)

        def scored(gamma: float | int, prompt_share: float | int, guided: float | int, alpha: float | int) -> Logits:
            weight, bias = self.discriminants[prompt_share]
            text = (1 - guided) * logits + guided * self._guided_logits(queries, gamma) if guided else logits
            return text + alpha * (queries @ weight.T + bias)

        return scored

    def learned_tensors(self) -> dict[str, Tensor]:
        """Return the guided text and the discriminants of the selected hyper-parameters."""
        weight, bias = self.discriminants[self.knobs["prompt_share"]]
        return {"guided_text": self.guided_texts[self.knobs["gamma"]], "weight": weight, "bias": bias}

    def restore(self, learned: Mapping[str, Tensor], chosen: Mapping[str, float | int]) -> None:
        """Take the place of a fit; only what was selected is there."""
        super().restore({}, chosen)
        self.guided_texts = {self.knobs["gamma"]: learned["guided_text"]}
        self.discriminants = {self.knobs["prompt_share"]: (learned["weight"], learned["bias"])}

    def _values(self, knob: str) -> list[float | int]:
        return sorted({point[knob] for point in self.candidates})

    def _guided_logits(self, queries: Float[Tensor, "batch dim"], gamma: float | int) -> Logits:
        return self.logit_scale * queries @ self.guided_texts[gamma].T


def guided_text(text: TextBank, likeness: Float[Tensor, "classes prompts"], gamma: float | int) -> Float[Tensor, "classes dim"]:
    """Return the image-guided text of each class, unit-norm.

    Args:
        text: The prompts.
        likeness: r, 0 in the padding, shape (classes, prompts).
        gamma: Sharpness of the weights; 0 weighs all prompts of a class equally.
    """
    scaled = gamma * F.normalize(likeness, dim=-1)
    weights = scaled.masked_fill(~text.mask, -math.inf).softmax(1)
    return F.normalize((weights[..., None] * text.features).sum(1), dim=-1)


def with_prompts(
    images: tuple[Tensor, Tensor], text: TextBank, likeness: Float[Tensor, "classes prompts"], share: float | int
) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
    """Return features and labels of the image samples, followed by those of the prompt samples.

    Args:
        images: Features, shape (samples, dim), and labels of the image samples.
        text: The prompts.
        likeness: r, 0 in the padding, shape (classes, prompts).
        share: Number of prompt samples per class, as a share of its prompts; at least one where it is above 0.
    """
    added = [prompt_samples(*row, share) for row in zip(text.features, text.mask, likeness, strict=True)]
    labels = torch.repeat_interleave(torch.tensor([len(part) for part in added]))
    return torch.cat([images[0], *added]), torch.cat([images[1], labels])


def prompt_samples(
    features: Float[Tensor, "prompts dim"], mask: Tensor, likeness: Float[Tensor, " prompts"], share: float | int
) -> Float[Tensor, "chosen dim"]:
    """Return the prompts of one class that are samples, each multiplied by its r."""
    order = likeness.masked_fill(~mask, -math.inf).argsort(descending=True, stable=True)[: int(mask.sum())]
    count = max(1, round(share * len(order))) if share else 0
    chosen = torch.cat([order, order])[:count]
    return likeness[chosen, None] * features[chosen]
