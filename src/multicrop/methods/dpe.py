"""DPE (NeurIPS 2024): text prototypes that evolve over the stream, and image prototypes from a cache, both refined for each image."""

import math
from typing import Annotated, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.base import entropies
from multicrop.aggregators.confidence import kept_views
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Count, Fraction, OneOf, Share, Weight
from multicrop.methods.base import Method, by_confidence, learning
from multicrop.methods.queues import insert
from multicrop.methods.tda import SOURCES
from multicrop.text import TextBank

CONTRAST = 0.01  # temperature between image and text prototypes
EPSILON = 1e-3  # of AdamW


class SeenImage(NamedTuple):
    """What the method reads of an image: its key, its text logits, and its probabilities."""

    key: Float[Tensor, " dim"]
    logits: Float[Tensor, " classes"]
    probability: Float[Tensor, " classes"]


class Dpe(Method):
    """Compute the logits of the evolved and refined prompts + alpha exp(-beta (1 - k_c v0)) for each class with cached images.

    The text prototypes W (C, D) start from the label prompts; the cache holds the `size` images of each predicted class with the lowest
    entropy, and k_c is the mean of a class's images. Both are moved for each image by one AdamW step on the entropy of its confident views'
    mean, plus `alignment_weight` times the contrastive loss between image and text prototypes of the classes in the cache. An image whose
    final entropy is below `entropy_high` enters the running mean of W with its moved prototypes; the moved image prototypes are dropped.
    The aggregator reads the prompts unit(T_cm + W_c - t_c + step_c).

    Source: DPE, NeurIPS 2024, after the authors' code, which computes in half precision. They choose alpha, beta, learning rate and
    `alignment_weight` per data set, on test images; the defaults are those of ImageNet with the weight of most other sets. Their bound 0.1
    divides nats by log2 C, hence 0.1443. Their prompts are the mean of templates and sentences.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        score: The run's aggregator, fused with the global view.
        pseudo_label: Source of cache label and entropy. ``"logits"``: those of the aggregator; ``"views"``: mean logits and mean
            probability of the most confident views (the authors').
        share: Share of the views that is kept, lowest entropy first.
        size: Cached images per class.
        alpha: Weight of the image prototypes.
        beta: Decay of their affinity with distance.
        learning_rate: Learning rate of both steps.
        alignment_weight: Weight of the contrastive loss.
        entropy_high: Entropy, as a share of ln C, below which an image changes the text prototypes.

    Raises:
        ValueError: If `pseudo_label` is neither.
    """

    episodic: ClassVar[bool] = False
    uses_gradients: ClassVar[bool] = True
    prototypes: Tensor
    updates: Tensor
    keys: Tensor
    entropies: Tensor

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        pseudo_label: Annotated[str, OneOf(SOURCES)] = "logits",
        share: Share = 0.1,
        size: Count = 3,
        alpha: Weight = 6.0,
        beta: Weight = 5.0,
        learning_rate: Weight = 6e-4,
        alignment_weight: Weight = 0.2,
        entropy_high: Fraction = 0.1443,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if pseudo_label not in SOURCES:
            raise ValueError(f"method.pseudo_label is logits or views, got {pseudo_label!r}")
        self.score, self.pseudo_label, self.share, self.alpha, self.beta = score, pseudo_label, share, alpha, beta
        self.learning_rate, self.alignment_weight, self.entropy_high = learning_rate, alignment_weight, entropy_high
        label = text.label
        self.register_buffer("prototypes", label.clone())
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("keys", label.new_zeros(len(label), size, label.shape[1]))
        self.register_buffer("entropies", label.new_full((len(label), size), torch.inf))

    def reset(self) -> None:
        """Return to the label prompts and an empty cache."""
        self.prototypes.copy_(self.text.label)
        self.updates.zero_()
        self.entropies.fill_(torch.inf)

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Insert each image into the cache and score it; `logits`, of the unchanged prompts, are not used."""
        return torch.stack([self._one(image) for image in views])

    def _one(self, views: Float[Tensor, "views dim"]) -> Float[Tensor, " classes"]:
        image = self._seen(views)
        label = int(image.logits.argmax())
        insert(self.keys[label], self.entropies[label], image.key, entropies(image.probability.clamp_min(1e-30).log()))
        classes, cached = self._image_prototypes()
        text_step, image_step = self._steps(image.key, classes, cached)
        moved = normalize(self.prototypes + text_step, dim=1)
        final = self._text_logits(views, self.prototypes + text_step)
        final = final.index_add(0, classes, self._affinity(normalize(cached + image_step, dim=1), views[0]))
        if float(entropies(final)) < self.entropy_high * math.log(len(final)):
            self.updates += 1
            self.prototypes.copy_((self.updates * self.prototypes + moved) / (self.updates + 1))
        return final

    def _text_logits(self, views: Float[Tensor, "views dim"], prototypes: Float[Tensor, "classes dim"]) -> Float[Tensor, " classes"]:
        return with_text(self.score, self.text.moved(prototypes - self.text.label))(views[None])[0]

    def _seen(self, views: Float[Tensor, "views dim"]) -> SeenImage:
        """The bare mean of the confident views, and the logits and probabilities that decide its place in the cache."""
        logits = self.logit_scale * views @ normalize(self.prototypes, dim=1).T
        kept = by_confidence(logits)[: kept_views(len(views), self.share)]
        key = views[kept].mean(0)
        if self.pseudo_label == "views":
            return SeenImage(key, logits[kept].mean(0), logits[kept].softmax(1).mean(0))
        text = self._text_logits(views, self.prototypes)
        return SeenImage(key, text, text.softmax(0))

    def _image_prototypes(self) -> tuple[Int[Tensor, " cached"], Float[Tensor, "cached dim"]]:
        """The classes with cached images, and the mean of these images."""
        filled = self.entropies.isfinite()
        classes = filled.any(1).nonzero().flatten()
        weight = filled[classes].to(self.keys.dtype)
        return classes, (self.keys[classes] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)

    def _affinity(self, prototypes: Float[Tensor, "cached dim"], image: Float[Tensor, " dim"]) -> Float[Tensor, " cached"]:
        return self.alpha * torch.exp(-self.beta * (1 - prototypes @ image))

    def _steps(
        self, key: Float[Tensor, " dim"], classes: Int[Tensor, " cached"], cached: Float[Tensor, "cached dim"]
    ) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, "cached dim"]]:
        """The first AdamW step of text and image prototypes."""
        with learning():
            key, classes = key.clone(), classes.clone()
            starts = [value.clone().requires_grad_() for value in (self.prototypes, cached)]
            text, image = (normalize(value, dim=1) for value in starts)
            logits = (self.logit_scale * text @ key).index_add(0, classes, self._affinity(image, key))
            contrast = cross_entropy(image @ text[classes].T / CONTRAST, torch.arange(len(classes), device=key.device))
            gradients = torch.autograd.grad(entropies(logits) + self.alignment_weight * contrast, starts)
        text_step, image_step = (-self.learning_rate * gradient / (gradient.abs() + EPSILON) for gradient in gradients)
        return text_step, image_step
