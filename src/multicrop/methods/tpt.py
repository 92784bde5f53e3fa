"""TPT, test-time prompt tuning (Shu et al., NeurIPS 2022): context tokens that make an image's confident views agree."""

import torch
from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators import Logits, Views
from multicrop.aggregators.base import entropies
from multicrop.aggregators.confidence import kept_views
from multicrop.aggregators.score import Score, reads_labels_alone, with_text
from multicrop.encoder import Encoder
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.methods.base import Method, learning
from multicrop.text import TextBank


class Tpt(Method):
    """Each image starts from the context `words`, takes `steps` AdamW steps on its own copy, and is scored with the prompts that result.

    The loss is the entropy in nats of the mean probability of the `share` of the views that are the most confident at the start, against
    the label prompts. The score is the run's: with aggregator=global the global view decides, as the authors have it; with a transport plan
    or another aggregator all prompts that it reads get the tuned context, descriptions too. Prompts that begin with `words` lose them to
    the context, the others get it in front. Images are independent (AdamW works element by element), so that they are tuned in batches,
    as many at once as memory for activations allows. AdamW has torch's other defaults, weight decay 0.01 among them, as the authors' has;
    they compute in half precision, here it is single.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        encoder: Encoder,
        score: Score,
        words: str,
        share: float,
        learning_rate: float,
        steps: int,
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
        """Scores with each image's own prompts; `logits`, made with the untuned ones, are not read."""
        with learning():
            parts = views.clone().split(self.tower.copies_at_once(self.tower.labels))
            context = torch.cat([self.tuned(part) for part in parts])
            with torch.no_grad():
                at_once = self.tower.copies_at_once(self.sheet)
                return torch.cat([self._scored(*part) for part in zip(views.split(at_once), context.split(at_once), strict=True)])

    def tuned(self, views: Views) -> Float[Tensor, "batch tokens width"]:
        """The context of each image after its steps."""
        views = self._confident(views)
        context = self.tower.words().expand(len(views), -1, -1).clone().requires_grad_()
        optimizer = torch.optim.AdamW([context], lr=self.learning_rate)
        for _ in range(self.steps):
            loss = self.loss(views, self.tower.features(context, self.tower.labels)[:, :, 0])
            (context.grad,) = torch.autograd.grad(loss.sum(), [context])
            optimizer.step()
        return context.detach()

    def loss(self, views: Views, labels: Float[Tensor, "batch classes dim"]) -> Float[Tensor, " batch"]:
        """The entropy of the mean probability of each image's views against its own label prompts."""
        mean = (self.logit_scale * views @ labels.transpose(1, 2)).log_softmax(-1).logsumexp(1)
        return entropies(mean)  # the logarithm of the number of views is a constant that softmax takes out

    def _confident(self, views: Views) -> Float[Tensor, "batch kept dim"]:
        nats = entropies(self.logit_scale * views @ self.untuned.T)
        order = nats.argsort(dim=1, stable=True)[:, : kept_views(views.shape[1], self.share)]
        return views.gather(1, order[..., None].expand(-1, -1, views.shape[2]))

    def _scored(self, views: Views, context: Float[Tensor, "batch tokens width"]) -> Logits:
        mask, prompts = self.text.mask, self.text.prompts
        texts = [TextBank(features, mask, prompts) for features in self.tower.features(context, self.sheet)]
        return torch.cat([with_text(self.score, text)(image[None]) for text, image in zip(texts, views, strict=True)])
