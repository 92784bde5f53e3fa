"""C-TPT (Yoon et al., ICLR 2024): TPT that also keeps the label prompts apart, for better calibration."""

from jaxtyping import Float
from torch import Tensor

from multicrop.aggregators import Views
from multicrop.aggregators.score import Score
from multicrop.encoder import Encoder
from multicrop.methods.tpt import Tpt
from multicrop.text import TextBank


class CTpt(Tpt):
    """TPT's loss - dispersion_weight * mean over classes of |t_c - mean t|, t the unit features of the label prompts.

    The authors' weight is 50 for fine-grained data sets and 20 for shifts of ImageNet.
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
        dispersion_weight: float,
    ) -> None:
        knobs = {"words": words, "share": share, "learning_rate": learning_rate, "steps": steps}
        super().__init__(text=text, logit_scale=logit_scale, encoder=encoder, score=score, **knobs)
        self.dispersion_weight = dispersion_weight

    def loss(self, views: Views, labels: Float[Tensor, "batch classes dim"]) -> Float[Tensor, " batch"]:
        """TPT's, less the weighted dispersion of each image's label prompts."""
        return super().loss(views, labels) - self.dispersion_weight * dispersion(labels)


def dispersion(labels: Float[Tensor, "batch classes dim"]) -> Float[Tensor, " batch"]:
    """The mean distance of the classes' features from their mean."""
    return (labels - labels.mean(1, keepdim=True)).norm(dim=-1).mean(1)
