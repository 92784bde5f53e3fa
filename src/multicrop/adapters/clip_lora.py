"""CLIP-LoRA (Zanella and Ben Ayed, CVPR workshops 2024): low-rank updates of the attention of both towers, learned from pixels."""

import copy

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from multicrop.adapters.base import EncoderAdapter
from multicrop.adapters.descent import descend
from multicrop.adapters.support_pixels import Iterations, SupportPixels
from multicrop.adapters.tuned_encoder import LabelTexts, label_accuracy, rebuilt
from multicrop.config.ranges import Accelerator, BelowOne, Count, Seed, Weight
from multicrop.data.base import LabelledImages
from multicrop.encoder import Encoder, check_projections, pooled_alone
from multicrop.text import TextBank

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class ClipLora(EncoderAdapter):
    """Train W + (alpha / rank) B A in the query, key and value projections of every layer of both towers; B starts at 0.

    Trained by cross entropy of a random resized, perhaps mirrored crop of each image against the label prompts, with AdamW (weight decay
    0.01) and cosine decay over iterations_per_shot * shots batches; the last iteration is kept. The updates are merged into the weights, so
    the tuned encoder is as fast as the original, and has a fingerprint and feature banks of its own. Training is in single precision. The
    random draws of an iteration are keyed by the seed and its number. With `checkpoint` an interrupted fit resumes; the file stays after
    the fit, for the caller to remove when the test images are encoded. `losses` holds the loss of each iteration.

    Source: Zanella and Ben Ayed, CVPR workshops 2024.

    Args:
        text: Text bank of the run; the label prompts are the class texts.
        logit_scale: Multiplier of cosine similarities.
        encoder: The encoder to start from; it stays as it is.
        rank: Rank of the updates.
        alpha: Scale of the updates, times rank.
        dropout: Dropout probability of the inputs of A.
        learning_rate: Initial learning rate of AdamW.
        iterations_per_shot: Number of batches per shot of the largest class.
        batch_size: Images per batch.
        accelerator: Accelerator of the run, ``"cpu"`` or other for CUDA.
        seed: Seed of A, dropout, batches and crops.

    Raises:
        ValueError: If rank, iterations_per_shot or batch_size is below 1. In `fit`, if a tower of the encoder has no such projections or no
            support image is readable.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        encoder: Encoder,
        rank: Count,
        alpha: Weight,
        dropout: BelowOne,
        learning_rate: Weight,
        iterations_per_shot: Count,
        batch_size: Count,
        accelerator: Accelerator,
        seed: Seed,
    ) -> None:
        if min(rank, iterations_per_shot, batch_size) < 1:
            raise ValueError(
                "adapter.rank, adapter.iterations_per_shot and adapter.batch_size are 1 or more, "
                f"got {rank}, {iterations_per_shot} and {batch_size}"
            )
        self.labels, self.logit_scale, self.encoder = [row[0] for row in text.prompts], logit_scale, encoder
        self.lora = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType] a fraction works: peft divides it by the rank
            lora_dropout=dropout,
            target_modules=list(PROJECTIONS),
        )
        self.learning_rate, self.iterations_per_shot, self.batch_size, self.seed = learning_rate, iterations_per_shot, batch_size, seed
        self.device = torch.device("cpu" if accelerator == "cpu" else "cuda")
        self.losses: list[float] = []

    def fit(self, support: LabelledImages, validation: LabelledImages) -> Encoder:
        """Train the updates and return the encoder with the updates merged; the validation images only report, on their global views."""
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)  # draws A, and dropout
            model = self._with_updates()
            student = rebuilt(self.encoder, model.get_base_model(), "fp32").to(self.device)
            student.model.train()
            self._train(student, support)
        tuned = rebuilt(self.encoder, model.cpu().merge_and_unload(), self.encoder.precision)
        tuned.requires_grad_(False)
        chosen = {"iteration": len(self.losses), **label_accuracy(tuned, self.labels, validation)}
        self.selection = {"how": "fixed", "images": len(validation), "chosen": chosen, "curve": [chosen]}
        return tuned

    def _with_updates(self) -> PeftModel:
        model = copy.deepcopy(self.encoder.model).float()
        check_projections(model, self.encoder.name, PROJECTIONS)
        return get_peft_model(model, self.lora)

    def _train(self, student: Encoder, support: LabelledImages) -> None:
        images = SupportPixels.of(support)
        batches = Iterations(len(images.readable), self.batch_size, self.seed)
        labels = LabelTexts(student, self.labels)

        def loss(batch: Tensor) -> Tensor:
            torch.manual_seed(batches.key)  # draws dropout
            pixels, targets = images.views(batch, student.spec, batches.key)
            logits = self.logit_scale * student.encode_images(pixels.to(self.device)) @ labels.features(student).T
            return F.cross_entropy(logits, targets.to(self.device))

        optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=self.learning_rate)
        count = self.iterations_per_shot * images.shots
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
        accelerator = "cpu" if self.device.type == "cpu" else "gpu"
        with pooled_alone(student.model):
            self.losses = descend(
                loss,
                schedule,
                batches,
                epochs=count,
                checkpoint=self.checkpoint,
                keep_file=True,
                progress=self.progress,
                accelerator=accelerator,
            )
