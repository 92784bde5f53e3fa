"""The LightningModule that trains the embedded CLIP: both towers from scratch, against captions of every concept at once."""

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from multicrop.pretrain.muon import Muon

IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def normalised(images: Tensor) -> Tensor:
    """uint8 pixels to the model's normalised floats."""
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (IMAGE_MEAN, IMAGE_STD))
    return (images.float() - mean) / std


def image_tokens(clip: CLIPModel, images: Tensor) -> Tensor:
    """Unit features of the class token, then of the patches (B,1+P,D), of uint8 pictures of any side."""
    whole = images.shape[-1] == clip.config.vision_config.image_size
    hidden = clip.vision_model(normalised(images), interpolate_pos_encoding=not whole).last_hidden_state
    return F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(hidden)).float(), dim=-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to targets normalised over the last dimension; rows without a target do not count."""
    total = targets.sum(-1, keepdim=True)
    loss = -(targets / total.clamp_min(1e-6) * logits.log_softmax(-1)).sum(-1)
    kept = total.squeeze(-1) > 0
    return loss[kept].mean() if kept.any() else logits.sum() * 0


def whitened_patches(pixels: Tensor, patch: int, width: int) -> Tensor:
    """Filters (width, 3, patch, patch): the leading principal components of the patches, each scaled to unit variance."""
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch**2)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = vectors.flip(1)[:, :width] / (values.flip(0)[:width] + 1e-3).sqrt()
    return filters.T.reshape(width, 3, patch, patch)


def sine_positions(tokens: int, width: int) -> Tensor:
    """(tokens + 1, width) two-dimensional sine-cosine positions; the class token's is zero."""
    side = int(tokens**0.5)
    frequency = 100 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequency
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    grid = torch.cat([rows, columns], 2).reshape(tokens, width)
    return torch.cat([torch.zeros(1, width), grid]) * 0.3


class TinyClip(L.LightningModule):
    """Losses, optimisers and schedule of the embedded model.

    The class token of an image is compared with one caption of every concept (targets by visible area), every patch token
    with the concept under it (token labelling), the class token with part phrases, and images of several objects with their
    captions. Hidden matrices are trained by Muon, everything else by AdamW; the rate is constant, then falls linearly.
    With `train_text` false the text tower stays as it is.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        steps: int,
        lr: float = 1.2e-3,
        warmup_steps: int = 100,
        decay_share: float = 0.4,
        train_text: bool = True,
        patch_weight: float = 0.5,
        phrase_weight: float = 0.25,
        scene_weight: float = 0.2,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clip = CLIPModel(config)
        self.clip.text_model.requires_grad_(train_text)
        self.clip.text_projection.requires_grad_(train_text)
        self.steps, self.lr, self.warmup_steps, self.decay_share = steps, lr, warmup_steps, decay_share
        self.patch_weight, self.phrase_weight, self.scene_weight = patch_weight, phrase_weight, scene_weight
        self.register_buffer("done", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def initialise_from(self, images: Tensor) -> None:
        """Set patch embedding and positions from a sample of training images (uint8, B,3,S,S)."""
        embeddings = self.clip.vision_model.embeddings
        weight = embeddings.patch_embedding.weight
        filters = whitened_patches(normalised(images), weight.shape[-1], weight.shape[0])
        weight.copy_(filters * 0.5)
        embeddings.position_embedding.weight.copy_(sine_positions(embeddings.num_patches, weight.shape[0]))

    def encode(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features of the images (B,D), of their patches (B,P,D) and of the texts (T,D)."""
        tokens = image_tokens(self.clip, batch["images"])
        return tokens[:, 0], tokens[:, 1:], self.encode_texts(batch["input_ids"], batch["lengths"])

    def encode_texts(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Unit features (T,D), in chunks of like length trimmed to their longest text: causal attention makes that exact."""
        order = lengths.argsort()
        chunks = [self.clip.get_text_features(input_ids=input_ids[rows, : lengths[rows].max()]).pooler_output for rows in order.chunk(4)]
        return F.normalize(torch.cat(chunks).float(), dim=-1)[order.argsort()]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The four losses and the top-1 accuracy on the images of the batch."""
        image, patches, text = self.encode(batch)
        scale = self.clip.logit_scale.exp()
        n_concepts, n_phrases = batch["concept_targets"].shape[1], batch["phrase_targets"].shape[1]
        concepts, phrases, scenes = text.split([n_concepts, n_phrases, len(batch["several"])])
        logits = scale * image @ concepts.T
        labelled = batch["patches"] >= 0
        return {
            "concept": soft_cross_entropy(logits, batch["concept_targets"]),
            "patch": F.cross_entropy(scale * patches[labelled] @ concepts.T, batch["patches"][labelled]),
            "phrase": soft_cross_entropy(scale * image @ phrases.T, batch["phrase_targets"]),
            "scene": self._contrast(scale * image[batch["several"]] @ scenes.T),
            "accuracy": self._top1(logits, batch["concept_targets"]),
        }

    def _contrast(self, logits: Tensor) -> Tensor:
        if not len(logits):  # no image of this batch shows several objects
            return logits.sum()
        target = torch.arange(len(logits))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def _top1(self, logits: Tensor, targets: Tensor) -> Tensor:
        kept = targets.sum(1) > 0
        return (logits.argmax(1) == targets.argmax(1))[kept].float().mean()

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss that is minimised."""
        return (
            terms["concept"]
            + self.patch_weight * terms["patch"]
            + self.phrase_weight * terms["phrase"]
            + self.scene_weight * terms["scene"]
        )

    def rate(self) -> float:
        """The learning rate's factor: warm-up, constant, then a linear fall to zero."""
        step, decay = int(self.done), int(self.steps * self.decay_share)
        return min((step + 1) / self.warmup_steps, 1.0, max(self.steps - step, 0) / max(decay, 1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One step of both optimisers."""
        terms = self.losses(batch)
        loss = self.total(terms)
        factor = self.rate()
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimizer in self.optimizers():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=4.6052)  # ln 100, as CLIP
        self.done += 1
        self.log_dict({f"train/{name}": value.detach() for name, value in {"loss": loss, **terms}.items()}, prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of the transformer blocks, AdamW for the rest (no decay on vectors)."""
        trained = [(name, parameter) for name, parameter in self.clip.named_parameters() if parameter.requires_grad]
        hidden = [p for n, p in trained if ".layers." in n and p.ndim == 2]
        chosen = {id(parameter) for parameter in hidden}
        rest = [p for _, p in trained if id(p) not in chosen]
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.05, "base_lr": self.lr},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "base_lr": self.lr},
        ]
        muon = Muon([{"params": hidden, "base_lr": self.lr * 2}], lr=self.lr, weight_decay=0.05)
        return [muon, torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95))]
