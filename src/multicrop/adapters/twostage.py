"""2SFS (Farina et al., CVPR 2025): layer normalisations of both towers are tuned, then a classifier on the frozen result."""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from multicrop.adapters.base import EncoderAdapter
from multicrop.adapters.descent import descend
from multicrop.adapters.support_pixels import Passes, SupportPixels
from multicrop.adapters.tuned_encoder import LabelTexts, linear_accuracy, rebuilt
from multicrop.config.ranges import Accelerator, Count, Fraction, OneOf, Seed, Weight
from multicrop.data.base import LabelledImages
from multicrop.encoder import Encoder, pooled_alone
from multicrop.text import TextBank

NORMS = ("blocks", "all")
BLOCK = re.compile(r"\blayers?\.\d+\.")  # in the name of a module inside a transformer block
TOWERS = ("vision_model", "text_model")
FINAL_RATE = 1e-6


class TwoStage(EncoderAdapter):
    """Tune weight and bias of the layer normalisations of both towers, then train a classifier U (classes, dim) on the frozen result.

    Of iterations_per_shot * shots batches the share `first_stage` descends the cross entropy of a random resized, perhaps mirrored crop of
    each image against the label prompts of the current text tower; the rest descends that against norm(U), which starts from the tuned
    label prompts w. Both stages use AdamW (weight decay 0.01) and cosine decay to 1e-6. Classes of the support set add u_c - w_c to all
    their prompts, unit-norm again; with one prompt per class these are the rows of norm(U). Other classes have the prompts of the tuned
    text tower. Training is in single precision, and the draws of an iteration are keyed by the seed and its number. With `checkpoint` an
    interrupted first stage resumes. `losses` holds the loss of each iteration of both stages.

    Source: Farina et al., CVPR 2025. Their documentation names all layer normalisations, their code trains those inside the blocks alone,
    which is the default here. They look a class up by its name, here it is by its position.

    Args:
        text: Text bank of the run; the label prompts are the class texts.
        logit_scale: Multiplier of cosine similarities.
        encoder: The encoder to start from; it stays as it is.
        norms: ``"blocks"``: the layer normalisations inside the transformer blocks; ``"all"``: those outside them too.
        first_stage: Share of the iterations that tune the encoder.
        learning_rate: Initial learning rate of AdamW in both stages.
        iterations_per_shot: Number of batches per shot of the largest class.
        batch_size: Images per batch; the last batch of a pass may be smaller.
        accelerator: Accelerator of the run, ``"cpu"`` or other for CUDA.
        seed: Seed of batches and crops.

    Raises:
        ValueError: If a value is outside its range. In `fit`, if no support image is readable.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        encoder: Encoder,
        norms: Annotated[str, OneOf(NORMS)],
        first_stage: Fraction,
        learning_rate: Weight,
        iterations_per_shot: Count,
        batch_size: Count,
        accelerator: Accelerator,
        seed: Seed,
    ) -> None:
        if norms not in NORMS or not 0 <= first_stage <= 1 or min(iterations_per_shot, batch_size) < 1:
            raise ValueError(
                f"adapter.norms is {' or '.join(NORMS)}, adapter.first_stage in 0-1, adapter.iterations_per_shot and adapter.batch_size 1 "
                f"or more, got {norms!r}, {first_stage}, {iterations_per_shot} and {batch_size}"
            )
        self.labels, self.logit_scale, self.encoder = [row[0] for row in text.prompts], logit_scale, encoder
        self.norms, self.first_stage, self.learning_rate = norms, first_stage, learning_rate
        self.iterations_per_shot, self.batch_size, self.seed = iterations_per_shot, batch_size, seed
        self.device = torch.device("cpu" if accelerator == "cpu" else "cuda")
        self.losses: list[float] = []
        self.step = torch.zeros(0)  # u - w, shape (classes, dim)

    def fit(self, support: LabelledImages, validation: LabelledImages) -> Encoder:
        """Train both stages and return the tuned encoder; the validation images only report, on their global views."""
        pixels = SupportPixels.of(support)
        count = self.iterations_per_shot * pixels.shots
        first = int(self.first_stage * count)
        with torch.random.fork_rng(), torch.enable_grad():
            student = rebuilt(self.encoder, copy.deepcopy(self.encoder.model).float(), "fp32").to(self.device)
            self.losses = self._tune(student, pixels, first)
            student.requires_grad_(False)
            weights, classifier = self._classify(student, pixels, count - first)
        self.step = (classifier - weights).cpu()
        tuned = rebuilt(self.encoder, student.model.cpu(), self.encoder.precision)
        chosen = {"iteration": count, **linear_accuracy(tuned, F.normalize(classifier, dim=-1).cpu(), validation)}
        self.selection = {"how": "fixed", "images": len(validation), "chosen": chosen, "curve": [chosen]}
        return tuned

    def encode_prompts(self, encoder: Encoder, prompts: list[list[str]], rows: Sequence[int | None]) -> TextBank:
        """Encode prompts with the tuned text tower; those of classes with a row are moved by its residual."""
        bank = encoder.encode_prompts(prompts)
        steps = [torch.zeros(self.step.shape[1]) if row is None else self.step[row] for row in rows]
        return bank.moved(torch.stack(steps).to(bank.features))

    def _tune(self, student: Encoder, support: SupportPixels, count: int) -> list[float]:
        """Train the layer normalisations; returns the losses."""
        tuned = [parameter for module in norms_of(student.model, self.norms, self.encoder.name) for parameter in module.parameters()]
        if not count:
            return []
        student.requires_grad_(False)
        for parameter in tuned:
            parameter.requires_grad_(True)
        texts = LabelTexts(student, self.labels)
        with pooled_alone(student.model):
            return self._descend(student, support, tuned, lambda: texts.features(student), stage=1, count=count)

    def _classify(
        self, student: Encoder, support: SupportPixels, count: int
    ) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, "classes dim"]]:
        """Train the classifier; returns the label features from which it starts, and its rows."""
        with torch.no_grad():
            weights = LabelTexts(student, self.labels).features(student)
        classifier = nn.Parameter(weights.clone())
        if count:
            self.losses += self._descend(student, support, [classifier], lambda: F.normalize(classifier, dim=-1), stage=2, count=count)
        return weights, classifier.detach()

    def _descend(
        self,
        student: Encoder,
        support: SupportPixels,
        tensors: list[nn.Parameter],
        weights: Callable[[], Float[Tensor, "classes dim"]],
        *,
        stage: int,
        count: int,
    ) -> list[float]:
        """Train the tensors of one stage, where `weights` gives the vectors of the classes; only the long first one has checkpoints."""
        batches = Passes(len(support.readable), self.batch_size, 2 * self.seed + stage)

        def loss(batch: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
            pixels, labels = support.views(batch, student.spec, batches.key)
            logits = self.logit_scale * student.encode_images(pixels.to(self.device)) @ weights().T
            return F.cross_entropy(logits, labels.to(self.device))

        return descend(
            loss,
            CosineAnnealingLR(torch.optim.AdamW(tensors, lr=self.learning_rate), count, eta_min=FINAL_RATE),
            batches,
            epochs=count,
            checkpoint=self.checkpoint if stage == 1 else None,
            keep_file=True,
            progress=self.progress,
            accelerator="cpu" if self.device.type == "cpu" else "gpu",
        )


def norms_of(model: nn.Module, which: str, name: str) -> list[nn.LayerNorm]:
    """Return the layer normalisations of both towers, ``"all"`` or those inside the transformer ``"blocks"``.

    Args:
        model: The model.
        which: ``"all"`` or ``"blocks"``.
        name: Name of the encoder, for the message.

    Raises:
        ValueError: If a tower has none inside its blocks.
    """
    found: list[nn.LayerNorm] = []
    for tower in TOWERS:
        norms = {place: own for place, own in getattr(model, tower, nn.Module()).named_modules() if isinstance(own, nn.LayerNorm)}
        if not (inside := [own for place, own in norms.items() if BLOCK.search(place)]):
            raise ValueError(
                f"adapter=twostage tunes the layer normalisations in the blocks of both towers, and {tower} of {name} has none here. "
                "Choose a CLIP model (model=clip_vit_b32), or an adapter that learns from features"
            )
        found += norms.values() if which == "all" else inside
    return found
