"""Compose augmented training images from sprites, one batch at a time: (generator, batch) -> pixels and exact labels."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

SLOTS = 4  # objects of a scene, one per quadrant


@dataclass(frozen=True)
class Composition:
    """One training batch of images and what they show.

    `objects` (B,4) holds class indices, -1 where a slot is empty; `visible` (B,4) the share of each object's own area that
    is visible in the image; `area` (B,4) the share of the image that it covers; `patches` (B,P) the class that covers
    most of a patch, else -1.
    """

    images: UInt8[Tensor, "batch 3 side side"]
    objects: Int[Tensor, "batch slots"]
    visible: Float[Tensor, "batch slots"]
    area: Float[Tensor, "batch slots"]
    patches: Int[Tensor, "batch patches"]


def mip_levels(sprites: UInt8[Tensor, "n 4 side side"]) -> list[Tensor]:
    """The sprites with premultiplied alpha at full, half and quarter side, so that small pastes do not alias."""
    pixels = sprites.float() / 255
    pixels[:, :3] *= pixels[:, 3:]
    return [F.avg_pool2d(pixels, 2**level) if level else pixels for level in range(3)]


class Composer:
    """Draws single objects and crops of four-object scenes on random backgrounds."""

    def __init__(
        self, sprites: UInt8[Tensor, "n 4 side side"], labels: Int[Tensor, " n"], *, scene_share: float = 0.6, patch: int = 16
    ) -> None:
        self.levels = mip_levels(sprites)
        self.labels, self.scene_share, self.patch = labels, scene_share, patch
        self.side = sprites.shape[-1]
        self.coverage = self.levels[2][:, 3].mean((1, 2))  # alpha area of a sprite over its square

    def __call__(self, batch: int, generator: torch.Generator) -> Composition:
        """A composition of `batch` images; everything random comes from the generator."""
        rand = _Uniform(generator)
        classes = torch.unique(self.labels)
        wanted = classes[torch.randint(len(classes), (batch, SLOTS), generator=generator)]
        sprite = self._sprite_of(wanted, rand)
        used, scale, centre = self._layout(batch, rand)
        canvas = _backgrounds(batch, self.side, rand)
        layers = self._layers(sprite, scale, centre, used, rand)
        alphas = []
        for slot in range(SLOTS):
            layer = layers[:, slot]
            canvas = canvas * (1 - layer[:, 3:]) + layer[:, :3]
            alphas = [alpha * (1 - layer[:, 3]) for alpha in alphas] + [layer[:, 3]]
        seen = torch.stack(alphas, 1)
        area = seen.mean((2, 3))
        visible = area / (self.coverage[sprite] * scale**2).clamp_min(1e-6) * used
        objects = torch.where(used, wanted, -1)
        images = (_photometric(canvas, rand) * 255).round().clamp(0, 255).to(torch.uint8)
        return Composition(images, objects, visible.clamp(0, 1), area, self._patch_labels(seen, objects))

    def _sprite_of(self, wanted: Tensor, rand: "_Uniform") -> Tensor:
        scores = rand(*wanted.shape, len(self.labels))
        scores[self.labels != wanted[..., None]] = -1
        return scores.argmax(-1)

    def _layout(self, batch: int, rand: "_Uniform") -> tuple[Tensor, Tensor, Tensor]:
        """Which slots are used, the scale of each object and its centre, both in units of the view's side."""
        scene = rand(batch) < self.scene_share
        base = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
        order = rand(batch, SLOTS).argsort(1)
        centre = base[order] + (rand(batch, SLOTS, 2) - 0.5) * 0.2
        scale = 0.28 + 0.18 * rand(batch, SLOTS)
        window = torch.where(rand(batch) < 0.25, 1.0, 0.3 + 0.5 * rand(batch))
        corner = rand(batch, 2) * (1 - window[:, None])
        centre = (centre - corner[:, None]) / window[:, None, None]
        scale = scale / window[:, None]
        alone = 0.5 + (rand(batch, 2) - 0.5) * 0.5
        first = torch.arange(SLOTS) == 0
        single = ~scene[:, None] & first
        centre = torch.where(single[..., None], alone[:, None], centre)
        scale = torch.where(single, (0.55 + 0.95 * rand(batch))[:, None], scale)
        return scene[:, None] | first, scale, centre

    def _layers(self, sprite: Tensor, scale: Tensor, centre: Tensor, used: Tensor, rand: "_Uniform") -> Tensor:
        """RGBA layers (B,4,4,S,S) with premultiplied alpha; unused slots and objects out of view stay empty."""
        batch, half = sprite.shape[0], scale / 2
        inside = ((centre + half[..., None] * 1.3 > 0) & (centre - half[..., None] * 1.3 < 1)).all(-1)
        wanted = (used & inside).flatten().nonzero().squeeze(1)
        sprite, scale, centre = sprite.flatten()[wanted], scale.flatten()[wanted], centre.flatten(0, 1)[wanted]
        angle = (rand(len(wanted)) - 0.5) * math.radians(50)
        flip = torch.where(rand(len(wanted)) < 0.5, -1.0, 1.0)
        stretch = torch.exp((rand(len(wanted), 2) - 0.5) * 0.3)
        rows = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        rows = rows / scale[:, None, None] * stretch[:, :, None]
        rows = torch.stack([rows[:, 0] * flip[:, None], rows[:, 1]], 1)
        shift = -(rows @ (2 * centre - 1)[:, :, None])
        grid = F.affine_grid(torch.cat([rows, shift], 2), [len(wanted), 1, self.side, self.side], align_corners=False)
        warp = (rand(len(wanted), 2, 4, 4) - 0.5) * 0.24
        warp = F.interpolate(warp, size=(self.side, self.side), mode="bilinear")
        grid = grid + warp.permute(0, 2, 3, 1)
        drawn = torch.zeros(len(wanted), 4, self.side, self.side)
        level = (-torch.log2(scale.clamp(0.25, 1)) + 0.25).floor().long().clamp(0, 2)
        for index, source in enumerate(self.levels):
            if (chosen := (level == index).nonzero().squeeze(1)).numel():
                drawn[chosen] = F.grid_sample(source[sprite[chosen]], grid[chosen], align_corners=False)
        colour = torch.eye(3) + (rand(len(wanted), 3, 3) - 0.5) * 0.3
        gain = 0.75 + 0.5 * rand(len(wanted), 1, 1)
        rgb = torch.einsum("nij,njhw->nihw", colour * gain, drawn[:, :3])
        drawn[:, :3] = torch.minimum(rgb.clamp_min(0), drawn[:, 3:])
        layers = torch.zeros(batch * SLOTS, 4, self.side, self.side)
        layers[wanted] = drawn
        return layers.view(batch, SLOTS, 4, self.side, self.side)

    def _patch_labels(self, seen: Tensor, objects: Tensor) -> Tensor:
        share = F.avg_pool2d(seen, self.patch).flatten(2)
        best, slot = share.max(1)
        return torch.where(best > 0.4, objects.gather(1, slot), -1)


class _Uniform:
    """Uniform numbers of a given shape from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)


def _backgrounds(batch: int, side: int, rand: _Uniform) -> Tensor:
    """Plain, graded or blotched colours; a fifth are white."""
    plain = rand(batch, 3, 1, 1).expand(-1, -1, side, side)
    coarse = F.interpolate(rand(batch, 3, 2, 2), size=(side, side), mode="bilinear", align_corners=True)
    fine = F.interpolate(rand(batch, 3, 7, 7), size=(side, side), mode="bilinear", align_corners=True)
    kind = rand(batch)[:, None, None, None]
    mixed = torch.where(kind < 0.3, plain, torch.where(kind < 0.6, coarse, 0.5 * fine + 0.5 * plain))
    return torch.where(kind > 0.8, torch.ones(()), mixed)


def _photometric(images: Tensor, rand: _Uniform) -> Tensor:
    """Random brightness and contrast of the whole image, sometimes with blur or grain."""
    batch, side = images.shape[0], images.shape[-1]
    contrast = 0.8 + 0.4 * rand(batch, 1, 1, 1)
    images = (images - 0.5) * contrast + 0.5 + (rand(batch, 1, 1, 1) - 0.5) * 0.2
    small = F.interpolate(F.avg_pool2d(images, 2), size=(side, side), mode="bilinear")
    images = torch.where(rand(batch, 1, 1, 1) < 0.2, small, images)
    grain = (rand(batch, 1, side, side) - 0.5) * 0.12
    return (images + torch.where(rand(batch, 1, 1, 1) < 0.25, grain, torch.zeros(()))).clamp(0, 1)
