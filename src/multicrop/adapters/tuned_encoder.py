"""What adapters share that change the encoder: label texts during training, the changed encoder, and its accuracy."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from multicrop.adapters.support_pixels import opened
from multicrop.crops.pixels import global_pixels
from multicrop.data.base import LabelledImages
from multicrop.data.images import to_tensor
from multicrop.encoder import Encoder

SCORED_AT_ONCE = 32  # validation images
MAX_PARTS, MIN_PART = 8, 64  # number of parts of the label texts, number of texts in a part


def rebuilt(own: Encoder, model: torch.nn.Module, precision: str) -> Encoder:
    """Return an encoder like `own` around other weights.

    Args:
        own: The encoder whose name, tokenizer and pixel specification are kept.
        model: The model with the other weights.
        precision: Precision of its image tower.
    """
    facts = {"name": own.name, "calibration": own.calibration, "text_cleaning": own.rule.cleaning}
    return Encoder(model, own.tokenizer, own.spec, precision=precision, **facts)


@torch.no_grad()
def label_accuracy(tuned: Encoder, labels: list[str], images: LabelledImages) -> dict[str, float]:
    """Return the accuracy (0-1) of the global views against the label texts as ``accuracy``; nothing if no image is readable.

    Args:
        tuned: The encoder.
        labels: One text per class.
        images: The images; unreadable ones are left out.
    """
    return linear_accuracy(tuned, LabelTexts(tuned, labels).features(tuned), images)


@torch.no_grad()
def linear_accuracy(tuned: Encoder, weights: Float[Tensor, "classes dim"], images: LabelledImages) -> dict[str, float]:
    """Return the accuracy (0-1) of the global views against one vector per class as ``accuracy``; nothing if no image is readable."""
    right = []
    for start in range(0, len(images), SCORED_AT_ONCE):
        batch = range(start, min(start + SCORED_AT_ONCE, len(images)))
        readable = [(image, images.labels[index]) for index in batch if (image := opened(images, index)) is not None]
        if readable:
            pixels = torch.stack([global_pixels(to_tensor(image), tuned.spec) for image, _ in readable])
            right.append((tuned.encode_images(pixels) @ weights.T).argmax(1) == torch.tensor([label for _, label in readable]))
    return {"accuracy": torch.cat(right).float().mean().item()} if right else {}


class LabelTexts:
    """Texts tokenised once, in parts of similar length, so that short texts are not padded to the longest of all."""

    def __init__(self, encoder: Encoder, texts: list[str]) -> None:
        count = min(MAX_PARTS, -(-len(texts) // MIN_PART))
        self.parts, self.position = encoder.token_parts(texts, -(-len(texts) // count))

    def features(self, encoder: Encoder) -> Float[Tensor, "texts dim"]:
        """Return unit-norm features, shape (texts, dim), differentiable in the encoder's weights."""
        features = encoder.text_outputs(self.parts)
        return F.normalize(features, dim=-1)[self.position.to(features.device)]
