"""Attaches an encoder to crop policies that look at the image, and computes what they are shown: the global view and attention."""

import copy
import hashlib
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from multicrop.crops import CropPolicy, CropSampler, GlobalView, as_policy
from multicrop.crops.pixels import PixelSpec, global_pixels, shown
from multicrop.encoder.dual import Encoder
from multicrop.encoder.facts import one_thread, pixel_spec
from multicrop.encoder.families import family_of
from multicrop.encoder.loading import load_model
from multicrop.files.hub import local_files_only

BACKBONE = "crop.backbone=facebook/dinov2-small"


def with_encoder(sampler: CropSampler, encoder: Encoder) -> CropPolicy:
    """Attach an encoder to a crop policy that looks at the image (crop=attention, crop=feature).

    Args:
        sampler: A crop policy, or a function or functools.partial that is one.
        encoder: The encoder whose global view, attention or tokens the policy reads.

    Returns:
        The policy with an encoder attached; unchanged where it does not look at the image, or has an encoder already.

    Raises:
        ValueError: If the encoder, or the backbone that the policy names, has no attention or tokens of the kind that the policy reads.
    """
    policy = as_policy(sampler)
    if policy.looks_at is None or policy.look is not None:
        return policy
    return replace(policy, look=_look(policy, encoder))


def _look(policy: CropPolicy, encoder: Encoder) -> "Look":
    if policy.looks_at == "tokens":
        encoder.check_feature_crops()
        return Look(encoder.spec)
    if backbone := policy.knobs.get("backbone"):
        return _backbone(backbone)
    tower = getattr(encoder.model, "vision_model", None)
    if encoder.spec.buckets is not None:
        raise ValueError(f"crop=attention needs patches on one grid, and those of {encoder.name} follow each image; name {BACKBONE}")
    if tower is None:
        raise ValueError(f"crop=attention needs an image tower, and {encoder.name} has none here; name one, for instance {BACKBONE}")
    name = f"that of {encoder.name} (family {family_of(encoder.model)!r})"
    return Look(encoder.spec, Attention(copy.deepcopy(tower).float(), encoder.spec, name), "own")


class Attention:
    """The last attention of a vision transformer from the class token to each patch, averaged over heads.

    The last attention is the last block's or, in a tower that pools by attention instead of a class token (SigLIP), its pooling head's.
    It runs on the CPU in fp32 with one thread, so that the weights depend on the image only: one forward of the global view per image, in
    the process that cuts the crops. Raises ValueError for a tower without such an attention, whose `name` the message gives.
    """

    def __init__(self, tower: nn.Module, spec: PixelSpec, name: str = "this one") -> None:
        self.tower, self.spec = tower.cpu().eval(), spec
        if reason := self._lacks():
            raise ValueError(
                f"crop=attention needs an image tower with attention from a class token or a pooling head to every patch, and {name} "
                f"{reason}; name another one, for instance {BACKBONE}"
            )

    @torch.no_grad()
    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "rows columns"]:
        """The share of attention per patch of the global view."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.spec.mean, self.spec.std))
        values = ((global_pixels(image, self.spec).float() / 255 - mean) / std)[None]
        with one_thread():
            weights = cast(Tensor, self._last_attention(values))
        side = self.spec.side // self.tower.config.patch_size
        return weights.flatten(0, -3)[:, 0, -side * side :].mean(0).reshape(side, side)

    def fingerprint(self) -> str:
        """A hash of the weights and of the pixel specification."""
        digest = hashlib.sha256(str(self.spec).encode())
        for _, value in sorted(self.tower.state_dict().items()):
            digest.update(memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy()))
        return digest.hexdigest()

    def _lacks(self) -> str:
        """What keeps the last attention of the tower from being read; empty where nothing does. It is tried on a black image."""
        if not hasattr(self.tower, "set_attn_implementation") or not isinstance(getattr(self.tower.config, "patch_size", None), int):
            return "is convolutional, groups its patches, or is not one of transformers"
        self.tower.set_attn_implementation("eager")
        with torch.no_grad():
            weights = self._last_attention(torch.zeros(1, 3, self.spec.side, self.spec.side))
        if weights is None:
            return "is convolutional, or returns no attention"
        (queries, keys), patches = weights.shape[-2:], (self.spec.side // self.tower.config.patch_size) ** 2
        if keys < patches or (queries > 1 and keys == patches):
            return f"has no class token: its last attention is of {queries} tokens to {keys}, for {patches} patches"
        return ""

    def _last_attention(self, values: Tensor) -> Tensor | None:
        """The weights (..., queries, keys) that the last attention of the tower returns beside its output; None where none does."""
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
        return seen[-1] if seen else None


class Look:
    """Computes the global view of an image for a crop policy: the part that it shows and, given an Attention, the share per patch."""

    def __init__(self, spec: PixelSpec, attention: Attention | None = None, name: str = "none") -> None:
        self.spec, self.attention, self.name = spec, attention, name

    def __call__(self, image: UInt8[Tensor, "3 height width"]) -> GlobalView:
        """The global view of one image."""
        weights = self.attention(image) if self.attention else None
        return GlobalView(shown(*image.shape[1:], self.spec), weights)

    @property
    def identity(self) -> str:
        """What of it can change a box; the weights of the image tower itself are part of the bank's identity already."""
        return f"Look({self.spec}, {self.name})"


def _backbone(path: str) -> Look:
    """The Look of another vision transformer, such as a DINO, by its folder or id."""
    from transformers import AutoImageProcessor  # seconds of imports, which other policies do not need

    model = load_model(path, attn_implementation="eager")
    tower = getattr(model, "vision_model", model)
    if not hasattr(tower.config, "patch_size") or not hasattr(tower.config, "num_attention_heads"):
        raise ValueError(f"crop.backbone={path} is a {type(model).__name__}, which is not a vision transformer; choose one, such as a DINO")
    try:
        processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False, local_files_only=local_files_only(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"crop.backbone={path} has weights but no usable image processor: {error}") from error
    attention = Attention(tower, pixel_spec(processor), f"that of crop.backbone={path}")
    return Look(attention.spec, attention, attention.fingerprint())
