"""Samplers that look at the image first: what they are shown, and by whose attention."""

import copy
import hashlib

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import AutoImageProcessor

from multicrop.crops import CropSampler, GlobalView, Sighted, looks_at
from multicrop.crops.pixels import PixelSpec, global_pixels, shown
from multicrop.encoder.dual import Encoder
from multicrop.encoder.facts import pixel_spec
from multicrop.encoder.loading import load_model


def sighted(sampler: CropSampler, encoder: Encoder) -> CropSampler:
    """The sampler with eyes, where it wants to look at the image (crop=attention, crop=feature); any other one as it is.

    Raises ValueError where the encoder cannot serve it.
    """
    wish = looks_at(sampler)
    if wish is None or isinstance(sampler, Sighted):
        return sampler
    if wish == "tokens":
        encoder.check_feature_crops()
        return Sighted(sampler, Look(encoder.spec))
    backbone = sampler.keywords.get("backbone")
    if backbone:
        return Sighted(sampler, _backbone(backbone))
    if encoder.model.config.model_type == "align" or not hasattr(encoder.model, "vision_model"):
        raise ValueError(
            f"crop=attention needs an image tower with attention, and that of {encoder.name} is convolutional; "
            "name another one, for instance crop.backbone=facebook/dinov2-small"
        )
    return Sighted(sampler, Look(encoder.spec, Attention(copy.deepcopy(encoder.model.vision_model).float(), encoder.spec), "own"))


class Attention:
    """Where a vision transformer looks: its last attention from the class token to each patch, the mean over heads.

    The last attention is the last block's or, in a tower that pools by attention instead of a class token (SigLIP), its pooling head's.
    Runs on the CPU in fp32 with one thread, so that the weights depend on the image alone: one forward of the global view an image, in
    the process that cuts the crops.
    """

    def __init__(self, tower: nn.Module, spec: PixelSpec) -> None:
        self.tower, self.spec = tower.cpu().eval(), spec
        self.tower.set_attn_implementation("eager")

    @torch.no_grad()
    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "rows columns"]:
        """The share of attention that each patch of the global view gets."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.spec.mean, self.spec.std))
        values = ((global_pixels(image, self.spec).float() / 255 - mean) / std)[None]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            weights = self._last_attention(values)
        finally:
            torch.set_num_threads(threads)
        side = self.spec.side // self.tower.config.patch_size
        return weights.flatten(0, -3)[:, 0, -side * side :].mean(0).reshape(side, side)

    def fingerprint(self) -> str:
        """A hash of the weights and the pixel facts."""
        digest = hashlib.sha256(str(self.spec).encode())
        for _, value in sorted(self.tower.state_dict().items()):
            digest.update(memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy()))
        return digest.hexdigest()

    def _last_attention(self, values: Tensor) -> Tensor:
        """The weights (..., queries, keys) that the last attention in the tower returns beside its output."""
        seen = []

        def keep(module: nn.Module, args: tuple, output: object) -> None:
            if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
                seen.append(output[1])

        hooks = [module.register_forward_hook(keep) for module in self.tower.modules()]
        try:
            self.tower(values)
        finally:
            for hook in hooks:
                hook.remove()
        return seen[-1]


class Look:
    """Looks at an image for a sampler: which part the global view shows and, with an attention, how much each patch gets."""

    def __init__(self, spec: PixelSpec, attention: Attention | None = None, name: str = "none") -> None:
        self.spec, self.attention, self.name = spec, attention, name

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> GlobalView:
        """What the sampler is shown of the image."""
        weights = self.attention(image) if self.attention else None
        return GlobalView(shown(*image.shape[1:], self.spec), weights)

    def __repr__(self) -> str:
        """What of it can change a box, for the bank's key; the tower's own weights are in the key already."""
        return f"Look({self.spec}, {self.name})"


def _backbone(path: str) -> Look:
    """The look of another vision transformer, for instance a DINO, by its folder or id."""
    model = load_model(path, attn_implementation="eager")
    tower = getattr(model, "vision_model", model)
    if not hasattr(tower.config, "patch_size") or not hasattr(tower.config, "num_attention_heads"):
        raise ValueError(f"crop.backbone={path} is a {type(model).__name__}, which is no vision transformer; choose one, such as a DINO")
    try:
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"crop.backbone={path} has weights but no usable image processor: {error}") from error
    attention = Attention(tower, pixel_spec(processor))
    return Look(attention.spec, attention, attention.fingerprint())
