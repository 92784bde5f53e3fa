"""C-TPT (Yoon et al., ICLR 2024): TPT that also keeps the label prompts dispersed, for better calibration."""

from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators import Views
from multicrop.aggregators.score import Score
from multicrop.config.ranges import Natural, Share, Weight
from multicrop.encoder import Encoder
from multicrop.methods.tpt import Tpt
from multicrop.text import TextBank


class CTpt(Tpt):
    """Minimise TPT's loss - dispersion_weight * mean over classes of |t_c - mean t|, with t the unit-norm features of the label prompts.

    Source: Yoon et al., ICLR 2024. The authors' weight is 50 for fine-grained data sets and 20 for shifts of ImageNet.

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        encoder: See `Tpt`, as the next five.
        score: See `Tpt`.
        words: See `Tpt`.
        share: See `Tpt`.
        learning_rate: See `Tpt`.
        steps: See `Tpt`.
        dispersion_weight: Weight of the dispersion of the label prompts.
    """

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
        dispersion_weight: Weight = 50.0,
    ) -> None:
        super().__init__(
            text=text,
            logit_scale=logit_scale,
            encoder=encoder,
            score=score,
            words=words,
            share=share,
            learning_rate=learning_rate,
            steps=steps,
        )
        self.dispersion_weight = dispersion_weight

    def loss(self, views: Views, labels: Float[Tensor, "batch classes dim"]) -> Float[Tensor, " batch"]:
        """Return TPT's loss less the weighted dispersion of each image's label prompts, shape (batch,)."""
        return super().loss(views, labels) - self.dispersion_weight * dispersion(labels)


def dispersion(labels: Float[Tensor, "batch classes dim"]) -> Float[Tensor, " batch"]:
    """Return the mean distance of the class features from their mean, shape (batch,)."""
    return (labels - labels.mean(1, keepdim=True)).norm(dim=-1).mean(1)
