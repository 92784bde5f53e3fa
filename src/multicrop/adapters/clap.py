"""CLAP (Silva-Rodriguez et al., CVPR 2024): a linear probe that starts from the text features and is pulled back to them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from multicrop.adapters.base import Examples, class_sums, samples
from multicrop.adapters.descent import descend
from multicrop.adapters.selection import Search, SelectedAdapter
from multicrop.adapters.training import Shuffled
from multicrop.aggregators import Logits, Views, pools
from multicrop.aggregators.score import Score, with_text
from multicrop.config.ranges import Count, OneOf, Positive, Samples, Seed, TextSet, ViewSet, Weight

CONSTRAINTS = ("class", "balanced", "corrected", "constant", "none")
WARM_UP = 1e-5  # the learning rate of the first epoch
BATCH = 256
AT_ONCE = 4096  # samples


class Clap(SelectedAdapter):
    """Compute the aggregator's logits with prompts norm(T_cm + residual * x_c), where w_c + x_c is the prototype of class c.

    The prototypes u are trained in the scale of raw text embeddings, from text_norm * w, with w_c the normalised mean of the class's
    prompts in `text_set`, and x_c = u_c / text_norm - w_c. The loss of a batch of samples f is the cross entropy of logit_scale * <f,
    norm(u_c)> plus mean_c lambda_c |u_c - text_norm w_c|^2. lambda_c is the mean zero-shot probability of class c over its own samples and
    does not change. SGD with momentum 0.9 has the rate 1e-5 in the first epoch and then a cosine per epoch; the last epoch is kept. With
    one prompt per class and residual 1 the logits of the global view are those of the prototypes. `losses` holds the mean loss of each
    epoch.

    Source: Silva-Rodriguez et al., CVPR 2024, with the settings of the authors' published command: no validation, the penalty averaged over
    classes. An epoch takes the first 256 * max(1, n // 256) of the samples in random order, n the number of images, as their code does.
    They start from the raw mean of the text embeddings, whose lengths differ by class (6 to 11 for CLIP); here all have the length
    `text_norm`. Their samples are 20 augmentations of each image, here the views of the bank. Training reads `text_set` alone, not the
    aggregator.

    Args:
        score: The run's aggregator, fused with the global view.
        residual: Scale of x in the prompts; 0 for the prompts as they were.
        constraint: lambda: ``"class"`` as above (CLAP), ``"balanced"`` 1, ``"corrected"`` lambda / mean lambda, ``"constant"`` the mean for
            all classes, ``"none"`` 0, which is the authors' zero-shot linear probe (ZS-LP).
        text_norm: Length of the text embeddings in training, which sets the scale of penalty and steps.
        text_set: The prompts whose mean is w, ``"label"``, ``"descriptions"``, ``"local"``, ``"global"``, ``"both"`` or ``"all"``.
        view_set: The views that are samples, ``"all"`` or ``"crops"``.
        samples: ``"views"``: a sample is a single view. ``"images"``: a pooled image.
        learning_rate: Learning rate of SGD after the first epoch.
        epochs: Number of epochs.
        seed: Seed of the order of the samples.
        search: Values of residual to try, see `SelectedAdapter`.

    Raises:
        ValueError: If `constraint` is none of these. In `fit`, if a class has no sample.
    """

    step: Tensor

    def __init__(
        self,
        *,
        score: Score,
        residual: Weight,
        constraint: Annotated[str, OneOf(CONSTRAINTS)],
        text_norm: Positive,
        text_set: TextSet,
        view_set: ViewSet,
        samples: Samples,
        learning_rate: Weight,
        epochs: Count,
        seed: Seed,
        search: Search = None,
    ) -> None:
        super().__init__(score=score, search=search, residual=residual)
        if constraint not in CONSTRAINTS:
            raise ValueError(f"adapter.constraint is one of {', '.join(CONSTRAINTS)}, got {constraint!r}")
        self.constraint, self.text_norm, self.text_set = constraint, text_norm, text_set
        self.view_set, self.samples = view_set, samples
        self.learning_rate, self.epochs, self.seed = learning_rate, epochs, seed
        self.losses: list[float] = []
        self.register_buffer("step", torch.zeros(len(self.text.prompts), self.text.features.shape[-1]))

    def learn(self, support: Examples) -> None:
        """Train the prototypes on the samples."""
        features, labels = samples(support, self.view_set, self.samples)
        chosen = self.text.select(self.text_set)
        text = pools.mean(chosen.features, chosen.mask)
        start, multipliers = self.text_norm * text, self.multipliers(features, labels, text)
        prototypes = nn.Parameter(start.clone())

        def loss(batch: Tensor) -> Tensor:
            logits = self.logit_scale * features[batch] @ F.normalize(prototypes, dim=-1).T
            pull = (multipliers * (prototypes - start).square().sum(1)).mean()
            return F.cross_entropy(logits, labels[batch]) + pull

        n = len(support.labels)
        batches = Shuffled(len(labels), min(len(labels), BATCH * max(1, n // BATCH)), BATCH, self.seed)
        optimizer = torch.optim.SGD([prototypes], lr=self.learning_rate, momentum=0.9)
        schedule = LambdaLR(optimizer, partial(rate, steps=len(batches), epochs=self.epochs, first=WARM_UP / (self.learning_rate or 1)))
        self.losses = descend(loss, schedule, batches, epochs=self.epochs, checkpoint=self.checkpoint, progress=self.progress)
        self.step = prototypes.detach() / self.text_norm - text

    def multipliers(
        self, features: Float[Tensor, "n dim"], labels: Tensor, text: Float[Tensor, "classes dim"]
    ) -> Float[Tensor, " classes"]:
        """Return lambda of each class, shape (classes,)."""
        parts = zip(features.split(AT_ONCE), labels[:, None].split(AT_ONCE), strict=True)
        own = torch.cat([(self.logit_scale * part @ text.T).softmax(1).gather(1, label) for part, label in parts])
        sums, count = class_sums(own, labels, len(text))
        found = (sums / count)[:, 0]
        return {
            "class": found,
            "balanced": torch.ones_like(found),
            "corrected": found / found.mean(),
            "constant": found.mean().expand_as(found),
            "none": torch.zeros_like(found),
        }[self.constraint]

    def adapted(self, views: Views, logits: Logits) -> Callable[..., Logits]:
        """Return the aggregator's logits with the changed prompts as a function of residual; `logits` are those of residual 0."""

        def scored(residual: float | int) -> Logits:
            return with_text(self.score, self.text.moved(residual * self.step))(views) if residual else logits

        return scored


def rate(step: int, *, steps: int, epochs: int, first: float) -> float:
    """Return the factor of the learning rate: `first` in epoch 0, (1 + cos(pi (e - 1) / epochs)) / 2 in epoch e.

    Args:
        step: Number of the step, from 0.
        steps: Steps per epoch.
        epochs: Number of epochs.
        first: Factor of the first epoch.
    """
    epoch = step // steps
    return first if epoch == 0 else (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
