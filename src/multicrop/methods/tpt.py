"""TPT, test-time prompt tuning (Shu et al., NeurIPS 2022): context tokens that make the confident views of an image agree."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.base import entropies
from multicrop.aggregators.confidence import kept_views
from multicrop.aggregators.score import Score, reads_labels_alone, with_text
from multicrop.config.ranges import Natural, Share, Weight
from multicrop.encoder import Encoder
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.methods.base import Method, learning
from multicrop.text import TextBank


class Tpt(Method):
    """Tune the context `words` for each image by `steps` AdamW steps, and score the image with the resulting prompts.

    The loss is the entropy in nats of the mean probability of the most confident views at the start, against the label prompts. All prompts
    that the aggregator reads get the tuned context, descriptions too: prompts that begin with `words` lose them to the context, others get
    it in front. Images are independent (AdamW works element by element), so they are tuned in batches as large as the memory for
    activations allows.

    Source: Shu et al., NeurIPS 2022. With aggregator=global the global view decides, as in the authors' code. AdamW has torch's other
    defaults, weight decay 0.01 among them, as theirs; they compute in half precision, here it is single precision.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        encoder: The encoder whose text tower reads the context.
        score: The run's aggregator, fused with the global view.
        words: The words from whose embeddings the context starts.
        share: Share of the views, lowest entropy first, in the loss.
        learning_rate: Learning rate of AdamW, 0 or more.
        steps: Steps per image, 0 or more.

    Raises:
        ValueError: If steps or learning_rate is negative.
    """

    episodic: ClassVar[bool] = True
    uses_gradients: ClassVar[bool] = True
    needs_text_tower: ClassVar[bool] = True

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        encoder: Encoder,
        score: Score,
        words: str = "a photo of a",
        share: Share = 0.1,
        learning_rate: Weight = 0.005,
        steps: Natural = 1,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        if steps < 0 or learning_rate < 0:
            raise ValueError(f"method.steps and method.learning_rate are 0 or more, got {steps} and {learning_rate}")
        self.score, self.share, self.learning_rate, self.steps = score, share, learning_rate, steps
        self.tower = PromptTower(encoder, text.prompts, lead=words)
        self.text, self.sheet = self.tower.wanted(text, labels_alone=reads_labels_alone(score))
        with torch.no_grad():
            self.untuned = self.tower.features(self.tower.words()[None], self.tower.labels)[0, :, 0]

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Tune the context of each image and score it with its own prompts; `logits`, of the untuned prompts, are not used."""
        with learning():
            parts = views.clone().split(self.tower.copies_at_once(self.tower.labels))
            context = torch.cat([self.tuned(part) for part in parts])
            with torch.no_grad():
                at_once = self.tower.copies_at_once(self.sheet)
                return torch.cat([self._scored(*part) for part in zip(views.split(at_once), context.split(at_once), strict=True)])

    def tuned(self, views: Views) -> Float[Tensor, "batch tokens width"]:
        """Return the context of each image after its steps, shape (batch, tokens, width)."""
        views = self._confident(views)
        context = self.tower.words().expand(len(views), -1, -1).clone().requires_grad_()
        optimizer = torch.optim.AdamW([context], lr=self.learning_rate)
        for _ in range(self.steps):
            loss = self.loss(views, self.tower.features(context, self.tower.labels)[:, :, 0])
            (context.grad,) = torch.autograd.grad(loss.sum(), [context])
            optimizer.step()
        return context.detach()

    def loss(self, views: Views, labels: Float[Tensor, "batch classes dim"]) -> Float[Tensor, " batch"]:
        """Compute the entropy of the mean probability of each image's views against its own label prompts.

        Args:
            views: The confident views, shape (batch, views, dim).
            labels: Label prompts of each image, shape (batch, classes, dim).

        Returns:
            Entropy in nats, shape (batch,).
        """
        mean = (self.logit_scale * views @ labels.transpose(1, 2)).log_softmax(-1).logsumexp(1)
        return entropies(mean)  # the logarithm of the number of views is a constant, which softmax removes

    def _confident(self, views: Views) -> Float[Tensor, "batch kept dim"]:
        nats = entropies(self.logit_scale * views @ self.untuned.T)
        order = nats.argsort(dim=1, stable=True)[:, : kept_views(views.shape[1], self.share)]
        return views.gather(1, order[..., None].expand(-1, -1, views.shape[2]))

    def _scored(self, views: Views, context: Float[Tensor, "batch tokens width"]) -> Logits:
        mask, prompts = self.text.mask, self.text.prompts
        texts = [TextBank(features, mask, prompts) for features in self.tower.features(context, self.sheet)]
        return torch.cat([with_text(self.score, text)(image[None]) for text, image in zip(texts, views, strict=True)])
