"""CoOp (Zhou et al., IJCV 2022): learned context tokens in front of the prompts."""

import torch
from torch import nn
from torch.nn import functional as F

from multicrop.adapters.base import Adapter, Examples, accuracy
from multicrop.adapters.plans import HeldPlans
from multicrop.adapters.training import train
from multicrop.aggregators import Logits, Views
from multicrop.aggregators.score import Score, reads_labels_alone, with_text
from multicrop.encoder import Encoder
from multicrop.encoder.prompt_tuning import PromptTower
from multicrop.text import TextBank

STARTS = ("words", "random")
RANDOM_DEVIATION = 0.02  # of the input embeddings of a random start
WARM_UP = 1e-5  # the learning rate of the first epoch


class CoOp(Adapter):
    """The aggregator's logits with prompts that have the learned context in place of `words`, or in front where they begin otherwise.

    The context is shared by all classes, or one a class; it starts from the embeddings of `words`, or at random (deviation 0.02) with
    `n_tokens` tokens. All prompts of a class get it, descriptions too. Trained by cross entropy through the aggregator (a transport plan
    is a constant there) as the authors do: SGD with momentum 0.9 and weight decay 5e-4, one epoch at 1e-5, then cosine decay; 50 epochs
    for one shot, 100 up to 4 shots, 200 beyond, the last one kept. They augment afresh each epoch; here the views of the bank are all.
    Prompts that the aggregator does not read are left out. `losses` holds the mean loss of each epoch. Raises ValueError for another
    `start` or a learning rate that is not above 0.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        score: Score,
        encoder: Encoder,
        words: str,
        start: str,
        n_tokens: int,
        class_specific: bool,
        learning_rate: float,
        epochs: int | None,
        batch_size: int,
        seed: int,
        plan_epochs: int = 1,
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

    def fit(self, support: Examples, validation: Examples) -> None:
        """Train the context on the support images; the validation images only report."""
        epochs = self.epochs or published_epochs(int(support.labels.bincount().max()))
        score = HeldPlans(self.score, len(support.labels), self.plan_epochs)
        self.losses = train(
            lambda batch: F.cross_entropy(score(batch, support.views[batch], self.prompts()), support.labels[batch]),
            torch.optim.SGD([self.context], lr=self.learning_rate, momentum=0.9, weight_decay=5e-4),
            n=len(support.labels),
            epochs=epochs,
            batch_size=self.batch_size,
            seed=self.seed,
            warm_up=WARM_UP,
            plan_epochs=self.plan_epochs,
            **self.keeping,
        )
        self._settle()
        with torch.no_grad():
            chosen = {"epoch": epochs, "accuracy": accuracy(self(validation.views, validation.logits), validation.labels)}
        self.selection = {"how": "fixed", "images": len(validation.labels), "chosen": chosen, "curve": [chosen]}

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The aggregator's logits with the learned prompts; `logits`, made with the old ones, are not read."""
        return with_text(self.score, self.learned)(views)

    def prompts(self) -> TextBank:
        """The prompts that the aggregator reads, under the context as it is now; differentiable in it."""
        tower, sheet = self.tower, self.sheet
        features = tower.own_features(self.context, sheet) if self.class_specific else tower.features(self.context, sheet)[0]
        return TextBank(features, self.text.mask, self.text.prompts)

    def _settle(self) -> None:
        with torch.no_grad():
            self.learned = self.prompts()


def published_epochs(shots: int) -> int:
    """The authors' epochs (they train 50 on ImageNet whatever the shots)."""
    return 50 if shots == 1 else 100 if shots <= 4 else 200
