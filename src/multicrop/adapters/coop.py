"""CoOp (Zhou et al., IJCV 2022): learned context tokens in front of the prompts."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multicrop.adapters.base import Adapter, Examples
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.selection import accuracy
from multicrop.adapters.training import Descent, train
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score, reads_labels_alone, with_text
from multicrop.config.ranges import Count, OneOf, Seed, Weight
from multicrop.encoder import Encoder
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.text import TextBank

STARTS = ("words", "random")
RANDOM_DEVIATION = 0.02  # of the input embeddings of a random start
WARM_UP = 1e-5  # the learning rate of the first epoch


class CoOp(Adapter):
    """Compute the aggregator's logits with a learned context in place of `words`, or in front of prompts that begin otherwise.

    All prompts of a class get the context, descriptions too; prompts that the aggregator does not read are left out. It is trained by
    cross entropy through the aggregator, where a transport plan is a constant; the last epoch is kept. `losses` holds the mean loss of
    each epoch.

    Source: Zhou et al., IJCV 2022. SGD with momentum 0.9 and weight decay 5e-4, one epoch at 1e-5, then cosine decay; 50 epochs for one
    shot, 100 up to 4 shots, 200 beyond, as in the authors' code. They draw new augmentations each epoch; here the views are those of the
    feature bank.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        score: The run's aggregator, fused with the global view.
        encoder: The encoder whose text tower reads the context.
        words: The words that the context replaces.
        start: ``"words"``: the context starts from their embeddings; ``"random"``: from normal noise of deviation 0.02.
        n_tokens: Number of context tokens of a random start.
        class_specific: Whether each class has a context of its own.
        learning_rate: Learning rate of SGD after the first epoch, above 0.
        epochs: Number of epochs; None for the authors' number.
        batch_size: Images per step.
        seed: Seed of a random start and of the order of the images.
        plan_epochs: Number of epochs for which a transport plan is held, see `HeldPlans`.

    Raises:
        ValueError: If `start` is neither, or the learning rate is not above 0.
    """

    needs_text_tower: ClassVar[bool] = True

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        encoder: Encoder,
        words: str,
        start: Annotated[str, OneOf(STARTS)],
        n_tokens: Count,
        class_specific: bool,
        learning_rate: Weight,
        epochs: Count | None,
        batch_size: Count,
        seed: Seed,
        plan_epochs: Count = 1,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale, score=score)
        if start not in STARTS:
            raise ValueError(f"adapter.start is {' or '.join(STARTS)}, got {start!r}")
        if learning_rate <= 0:
            raise ValueError(f"adapter.learning_rate is above 0, got {learning_rate}")
        self.learning_rate, self.epochs, self.batch_size, self.seed = learning_rate, epochs, batch_size, seed
        self.plan_epochs = plan_epochs
        self.tower = PromptTower(encoder, text.prompts, lead=words, n_tokens=None if start == "words" else n_tokens)
        shape = (len(text.prompts) if class_specific else 1, self.tower.n_tokens, self.tower.width)
        generator = torch.Generator().manual_seed(seed)
        drawn = RANDOM_DEVIATION * torch.randn(shape, generator=generator)
        self.class_specific = class_specific
        self.text, self.sheet = self.tower.wanted(text, labels_alone=reads_labels_alone(score))
        self.context = nn.Parameter(self.tower.words().expand(shape).clone() if start == "words" else drawn)
        self.losses: list[float] = []
        self._settle()

    @property
    def class_free(self) -> bool:
        """Whether all classes share one context."""
        return not self.class_specific

    def fit(self, support: Examples, validation: Examples) -> None:
        """Train the context on the support images; the validation images only report."""
        epochs = self.epochs or published_epochs(int(support.labels.bincount().max()))
        descent = Descent(self.learning_rate, epochs, self.batch_size, self.seed, self.plan_epochs)
        score = HeldPlans(self.score, len(support.labels), self.plan_epochs)
        self.losses = train(
            lambda batch: F.cross_entropy(score(batch, support.views[batch], self.prompts()), support.labels[batch]),
            torch.optim.SGD([self.context], lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            n=len(support.labels),
            descent=descent,
            warm_up=WARM_UP,
            checkpoint=self.checkpoint,
            progress=self.progress,
        )
        self._settle()
        with torch.no_grad():
            chosen = {"epoch": epochs, "accuracy": accuracy(self(validation.views, validation.logits), validation.labels)}
        self.selection = {"how": "fixed", "images": len(validation.labels), "chosen": chosen, "curve": [chosen]}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """Compute the aggregator's logits with the learned prompts, shape (batch, classes); `logits`, of the old prompts, are not used."""
        return with_text(self.score, self.learned)(views)

    def restore(self, learned: Mapping[str, Tensor], chosen: Mapping[str, float | int]) -> None:
        """Take the place of a fit: encode the prompts with the learned context."""
        super().restore(learned, chosen)
        self._settle()

    def prompts(self) -> TextBank:
        """Return the prompts that the aggregator reads, with the current context; differentiable in it."""
        tower, sheet = self.tower, self.sheet
        features = tower.own_features(self.context, sheet) if self.class_specific else tower.features(self.context, sheet)[0]
        return TextBank(features, self.text.mask, self.text.prompts)

    def _settle(self) -> None:
        with torch.no_grad():
            self.learned = self.prompts()


def published_epochs(shots: int) -> int:
    """Return the authors' number of epochs (on ImageNet they train 50 for any number of shots)."""
    return 50 if shots == 1 else 100 if shots <= 4 else 200
