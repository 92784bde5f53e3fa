"""Compose augmented training images from sprites, one batch at a time: (generator, batch) -> pixels and exact labels."""

import math
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

SLOTS = 4  # objects of a scene, one per quadrant
PART = 16  # images composed at once: their layers stay in the processor's cache


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


@runtime_checkable
class SpriteSource(Protocol):
    """Sprites that are read by position: a tensor in memory, or a bank on disk."""

    def __len__(self) -> int:
        """The number of sprites."""

    def __getitem__(self, positions: Int[Tensor, " n"], /) -> UInt8[Tensor, "n 4 side side"]:
        """The sprites at these positions."""


class _ByClass:
    """Sprites sorted by class, so that a random one of a class is found without a search."""

    def __init__(self, sprites: SpriteSource, labels: Int[Tensor, " n"]) -> None:
        self.sprites, self.order = sprites, labels.argsort(stable=True)
        self.counts = torch.bincount(labels)
        self.starts = self.counts.cumsum(0) - self.counts

    def of(self, wanted: Int[Tensor, " k"], rand: "_Uniform") -> UInt8[Tensor, "k 4 side side"]:
        """A random sprite of each wanted class."""
        offset = (rand(len(wanted)) * self.counts[wanted]).long()
        return self.sprites[self.order[self.starts[wanted] + offset]]


class Composer:
    """Draws single objects and crops of four-object scenes on random backgrounds."""

    def __init__(
        self,
        sprites: UInt8[Tensor, "n 4 side side"],
        labels: Int[Tensor, " n"],
        *,
        restyled: tuple[SpriteSource, Int[Tensor, " m"]] | None = None,
        restyled_share: float = 0.75,
        scene_share: float = 0.6,
        whole_share: float = 0.25,
        patch: int = 16,
    ) -> None:
        """Take the sprites.

        Args:
            sprites: The drawings, RGBA.
            labels: Class index per drawing.
            restyled: Restyled sprites and their class indices, or None.
            restyled_share: Share of the objects that are restyled, where there are restyled sprites.
            scene_share: Share of the images that show several objects.
            whole_share: Share of the scenes that are seen as a whole; the others are crops of 0.3 to 0.8 of the side.
            patch: Side of a patch in pixels.
        """
        self.original = _ByClass(sprites, labels)
        self.restyled = _ByClass(*restyled) if restyled else None
        self.restyled_share = restyled_share if restyled else 0.0
        self.scene_share, self.whole_share, self.patch = scene_share, whole_share, patch
        self.classes, self.side = torch.unique(labels), sprites.shape[-1]

    def __call__(self, batch: int, generator: torch.Generator) -> Composition:
        """A composition of `batch` images; everything random comes from the generator."""
        parts = [self._part(min(PART, batch - done), _Uniform(generator)) for done in range(0, batch, PART)]
        return Composition(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Composition)))

    def _part(self, batch: int, rand: "_Uniform") -> Composition:
        wanted = self.classes[(rand(batch, SLOTS) * len(self.classes)).long()]
        used, scale, centre = self._layout(batch, rand)
        canvas = _backgrounds(batch, self.side, rand)
        layers, coverage = self._layers(wanted, scale, centre, used, rand)
        alphas = []
        for slot in range(SLOTS):
            layer = layers[:, slot]
            canvas = canvas * (1 - layer[:, 3:]) + layer[:, :3]
            alphas = [alpha * (1 - layer[:, 3]) for alpha in alphas] + [layer[:, 3]]
        seen = torch.stack(alphas, 1)
        area = seen.mean((2, 3))
        visible = area / (coverage * scale**2).clamp_min(1e-6) * used
        objects = torch.where(used, wanted, -1)
        images = (_photometric(canvas, rand) * 255).round().clamp(0, 255).to(torch.uint8)
        return Composition(images, objects, visible.clamp(0, 1), area, self._patch_labels(seen, objects))

    def _sprites(self, wanted: Tensor, rand: "_Uniform") -> Tensor:
        """A random sprite per wanted class, from 0 to 1 with premultiplied alpha; a share of them restyled."""
        restyled = rand(len(wanted)) < self.restyled_share
        pixels = torch.empty(len(wanted), 4, self.side, self.side, dtype=torch.uint8)
        for source, chosen in ((self.original, ~restyled), (self.restyled, restyled)):
            if source and chosen.any():
                pixels[chosen] = source.of(wanted[chosen], rand)
        sprites = pixels.float() / 255
        sprites[:, :3] *= sprites[:, 3:]
        return sprites

    def _layout(self, batch: int, rand: "_Uniform") -> tuple[Tensor, Tensor, Tensor]:
        """Which slots are used, the scale of each object and its centre, both in units of the view's side."""
        scene = rand(batch) < self.scene_share
        base = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
        order = rand(batch, SLOTS).argsort(1)
        centre = base[order] + (rand(batch, SLOTS, 2) - 0.5) * 0.2
        scale = 0.28 + 0.18 * rand(batch, SLOTS)
        window = torch.where(rand(batch) < self.whole_share, 1.0, 0.3 + 0.5 * rand(batch))
        corner = rand(batch, 2) * (1 - window[:, None])
        centre = (centre - corner[:, None]) / window[:, None, None]
        scale = scale / window[:, None]
        alone = 0.5 + (rand(batch, 2) - 0.5) * 0.5
        first = torch.arange(SLOTS) == 0
        single = ~scene[:, None] & first
        centre = torch.where(single[..., None], alone[:, None], centre)
        scale = torch.where(single, (0.55 + 0.95 * rand(batch))[:, None], scale)
        return scene[:, None] | first, scale, centre

    def _layers(self, classes: Tensor, scale: Tensor, centre: Tensor, used: Tensor, rand: "_Uniform") -> tuple[Tensor, Tensor]:
        """RGBA layers (B,4,4,S,S) with premultiplied alpha, and the share of its square that each object's sprite covers (B,4).

        Layers of unused slots and of objects out of view stay empty.
        """
        batch, half = classes.shape[0], scale / 2
        inside = ((centre + half[..., None] * 1.3 > 0) & (centre - half[..., None] * 1.3 < 1)).all(-1)
        wanted = (used & inside).flatten().nonzero().squeeze(1)
        scale, centre = scale.flatten()[wanted], centre.flatten(0, 1)[wanted]
        sprites = self._sprites(classes.flatten()[wanted], rand)
        coverage = torch.zeros(batch * SLOTS)
        coverage[wanted] = sprites[:, 3].mean((1, 2))
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
        for index in range(3):  # a small paste samples a smaller sprite, so that it does not alias
            if (chosen := (level == index).nonzero().squeeze(1)).numel():
                small = F.avg_pool2d(sprites[chosen], 2**index)
                drawn[chosen] = F.grid_sample(small, grid[chosen], align_corners=False)
        colour = torch.eye(3) + (rand(len(wanted), 3, 3) - 0.5) * 0.3
        gain = 0.75 + 0.5 * rand(len(wanted), 1, 1)
        rgb = torch.einsum("nij,njhw->nihw", colour * gain, drawn[:, :3])
        drawn[:, :3] = torch.minimum(rgb.clamp_min(0), drawn[:, 3:])
        layers = torch.zeros(batch * SLOTS, 4, self.side, self.side)
        layers[wanted] = drawn
        return layers.view(batch, SLOTS, 4, self.side, self.side), coverage.view(batch, SLOTS)

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
