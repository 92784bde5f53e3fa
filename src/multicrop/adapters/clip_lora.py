"""CLIP-LoRA (Zanella and Ben Ayed, CVPR workshops 2024): low-rank updates of the attention of both towers, learned from pixels."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from multicrop.adapters.base import EncoderAdapter
from multicrop.adapters.training import descend
from multicrop.crops import boxes_of, random_resized
from multicrop.crops.pixels import crop_pixels, global_pixels
from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError, shared_pixels, to_tensor
from multicrop.encoder import Encoder, pooled_alone
from multicrop.text import TextBank

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
SCORED_AT_ONCE = 32  # validation images
PARTS, PART = 8, 64  # parts of the label texts at most, texts in one at least
HELD_BYTES = 2**30  # of opened support images, so that a small set is decoded once


class ClipLora(EncoderAdapter):
    """Both towers get W + (alpha / rank) B A in the query, key and value projections of every layer; B starts at 0.

    Trained by cross entropy of each image's random resized, perhaps mirrored crop against the label prompts, with AdamW (weight decay
    0.01) and cosine decay, iterations_per_shot * shots batches, the last one kept. The updates are merged into the weights, so that the
    tuned encoder is as fast as the one it came from, has a fingerprint of its own, and so has its banks. It is trained in single
    precision on the accelerator of the run. What an iteration draws is keyed by seed and number. With `checkpoint` a killed fit goes
    on, and the file stays: who asked for it removes it when the images are encoded again. `losses` holds the loss of each iteration.
    Raises ValueError for an encoder without such projections, or when no support image can be read.
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        encoder: Encoder,
        rank: int,
        alpha: float | int,
        dropout: float | int,
        learning_rate: float,
        iterations_per_shot: int,
        batch_size: int,
        accelerator: str,
        seed: int,
    ) -> None:
        if min(rank, iterations_per_shot, batch_size) < 1:
            raise ValueError(
                "adapter.rank, adapter.iterations_per_shot and adapter.batch_size are 1 or more, "
                f"got {rank}, {iterations_per_shot} and {batch_size}"
            )
        self.labels, self.logit_scale, self.encoder = [row[0] for row in text.prompts], logit_scale, encoder
        self.lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(PROJECTIONS))
        self.learning_rate, self.iterations_per_shot, self.batch_size, self.seed = learning_rate, iterations_per_shot, batch_size, seed
        self.device = torch.device("cpu" if accelerator == "cpu" else "cuda")
        self.selection: dict[str, object] = {}
        self.losses: list[float] = []

    def fit(self, support: LabelledImages, validation: LabelledImages) -> Encoder:
        """The encoder with the learned updates merged; the validation images only report, on their global views."""
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)  # of A, and of dropout
            model = self._with_updates()
            student = self._encoder(model.get_base_model(), "fp32").to(self.device)
            student.model.train()
            self._train(student, support)
        tuned = self._encoder(model.cpu().merge_and_unload(), self.encoder.precision)
        tuned.requires_grad_(False)
        chosen = {"iteration": len(self.losses), **self._validated(tuned, validation)}
        self.selection = {"how": "fixed", "images": len(validation), "chosen": chosen, "curve": [chosen]}
        return tuned

    def _with_updates(self) -> PeftModel:
        try:
            return get_peft_model(copy.deepcopy(self.encoder.model).float(), self.lora)
        except ValueError as error:
            raise ValueError(
                f"adapter=clip_lora wants a model with {', '.join(PROJECTIONS)} in its attention, and {self.encoder.name} has none "
                f"({error}); choose a CLIP model (model=clip_vit_b32), or an adapter that learns on features"
            ) from error

    def _encoder(self, model: torch.nn.Module, precision: str) -> Encoder:
        facts = {"name": self.encoder.name, "calibration": self.encoder.calibration}
        return Encoder(model, self.encoder.tokenizer, self.encoder.spec, precision=precision, **facts)

    def _train(self, student: Encoder, support: LabelledImages) -> None:
        support = replace(support, open=Held(support.open))
        readable = [index for index in range(len(support)) if _opened(support, index) is not None]
        if not readable:
            raise ValueError(f"no image of {support.name} can be read; mend them or choose other data")
        shots = max(support.labels.count(label) for label in set(support.labels))
        batches = Iterations(len(readable), self.batch_size, self.seed)
        labels = LabelTexts(student, self.labels)

        def loss(batch: Tensor) -> Tensor:
            torch.manual_seed(batches.key)  # of dropout
            chosen = [readable[index] for index in batch.tolist()]
            pixels = torch.stack([random_view(support, index, student, batches.key) for index in chosen])
            logits = self.logit_scale * student.encode_images(pixels.to(self.device)) @ labels.features(student).T
            return F.cross_entropy(logits, torch.tensor([support.labels[index] for index in chosen], device=self.device))

        optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=self.learning_rate)
        count = self.iterations_per_shot * shots
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
        accelerator = "cpu" if self.device.type == "cpu" else "gpu"
        with pooled_alone(student.model):
            self.losses = descend(loss, schedule, batches, epochs=count, accelerator=accelerator, leave=True, **self.keeping)

    @torch.no_grad()
    def _validated(self, tuned: Encoder, validation: LabelledImages) -> dict[str, float]:
        text, right = LabelTexts(tuned, self.labels).features(tuned), []
        for start in range(0, len(validation), SCORED_AT_ONCE):
            batch = range(start, min(start + SCORED_AT_ONCE, len(validation)))
            opened = [(image, validation.labels[index]) for index in batch if (image := _opened(validation, index)) is not None]
            if opened:
                pixels = torch.stack([global_pixels(to_tensor(image), tuned.spec) for image, _ in opened])
                right.append((tuned.encode_images(pixels) @ text.T).argmax(1) == torch.tensor([label for _, label in opened]))
        return {"accuracy": torch.cat(right).float().mean().item()} if right else {}


class Iterations:
    """One batch an epoch, from shuffles of the indices below n that are laid end to end; `key` seeds what else an iteration draws."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0

    @property
    def key(self) -> int:
        """A seed of this iteration's own."""
        return 1_000_003 * self.seed + self.epoch

    def __iter__(self) -> Iterator[Tensor]:
        places = range(self.epoch * self.batch_size, (self.epoch + 1) * self.batch_size)
        shuffles = {turn: self._shuffle(turn) for turn in range(places[0] // self.n, places[-1] // self.n + 1)}
        yield torch.stack([shuffles[place // self.n][place % self.n] for place in places])

    def __len__(self) -> int:
        return 1

    def _shuffle(self, turn: int) -> Tensor:
        return torch.randperm(self.n, generator=torch.Generator().manual_seed(1_000_003 * self.seed + turn))


class Held:
    """Opens images, and keeps the first ones that fit into HELD_BYTES: where every image comes up as often, as good a choice as any."""

    def __init__(self, opened: Callable[[int], Image.Image]) -> None:
        self.opened, self.images, self.room = opened, {}, HELD_BYTES

    def __call__(self, index: int) -> Image.Image:
        """The image at this index."""
        if index in self.images:
            return self.images[index]
        image = self.opened(index)
        if (size := 4 * image.width * image.height) <= self.room:  # PIL's four bytes a pixel
            self.images[index] = image
            self.room -= size
        return image


def random_view(images: LabelledImages, index: int, encoder: Encoder, seed: int) -> Tensor:
    """Pixels (3, side, side) of one random resized crop, keyed by the seed and the image's id."""
    pixels = shared_pixels(images.open(index))
    sampler = partial(random_resized, n_crops=1, min_area=0.08, max_area=1.0, flip_probability=0.5)
    box = boxes_of(sampler, *pixels.shape[1:], images.ids[index], seed)[1]
    return crop_pixels(pixels, *box.int().tolist(), spec=encoder.spec)


class LabelTexts:
    """Texts as tokens, made once, in parts of like length: padded to the longest of all, most of the work on short ones is in vain."""

    def __init__(self, encoder: Encoder, texts: list[str]) -> None:
        count = min(PARTS, -(-len(texts) // PART))
        self.parts, self.position = encoder.token_parts(texts, -(-len(texts) // count))

    def features(self, encoder: Encoder) -> Float[Tensor, "texts dim"]:
        """Unit features, differentiable in the encoder's weights."""
        features = encoder.text_outputs(self.parts)
        return F.normalize(features, dim=-1)[self.position.to(features.device)]


def _opened(images: LabelledImages, index: int) -> Image.Image | None:
    try:
        return images.open(index)
    except ImageError:
        return None
