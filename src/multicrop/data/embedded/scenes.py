"""`dataset=scenes`: seeded compositions of several objects; the classes of a family differ in one object."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Interval
from PIL import Image

from multicrop.config.ranges import Count, Natural, OneOf, Range, Seed
from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.embedded import artwork
from multicrop.data.embedded.artwork import Drawing, HeldOut, Trained, artwork_fingerprint, load_concepts, load_drawings, pool_vendors
from multicrop.data.embedded.whole import of_scene, several
from multicrop.files import content_hash

SPLIT_KEYS = {"train": 1, "validation": 2, "test": 3}
RELATED = ("fluent-3d", "noto-v1")  # held-out vendors whose scenes have the same classes, so that their rows compare
BACKGROUNDS = ("plain", "white", "mixed")
CLUSTERS = ("class", "family")
Classes = Annotated[int, Interval(ge=2, le=10_000)]
Objects = Annotated[int, Interval(ge=1, le=16)]
Further = Annotated[int, Interval(ge=0, le=16)]
Canvas = Annotated[int, Interval(ge=16, le=4096)]


def scene_classes(concepts: list[str], *, n_classes: int, family_size: int, n_objects: int, seed: int) -> list[list[str]]:
    """`n_classes` sets of `n_objects` concepts; each family of `family_size` shares all but one of them.

    Raises ValueError if there are too few concepts for one family.
    """
    if n_objects - 1 + family_size > len(concepts):
        raise ValueError(f"{n_objects} objects in families of {family_size} need more than the {len(concepts)} concepts at hand")
    rng = np.random.default_rng(seed)
    classes: list[list[str]] = []
    while len(classes) < n_classes:
        drawn = rng.choice(concepts, n_objects - 1 + family_size, replace=False).tolist()
        shared, last = drawn[: n_objects - 1], drawn[n_objects - 1 :]
        classes += [[*shared, own] for own in last[: n_classes - len(classes)]]
    return classes


@dataclass(frozen=True)
class _Scenes:
    """Renders scene i from its own key; the same i gives the same image in every process."""

    classes: list[list[str]]
    sprites: dict[str, list[Drawing]]
    labels: list[int]
    key: tuple[int, int]
    canvas: int
    object_side: tuple[float, float]
    distractors: int
    background: str

    def __call__(self, index: int) -> Image.Image:
        rng = np.random.default_rng([*self.key, index])
        shown = list(self.classes[self.labels[index]])
        others = sorted(set(self.sprites) - set(shown))
        shown += rng.choice(others, self.distractors, replace=False).tolist() if self.distractors else []
        canvas = _background(self.canvas, self.background, rng)
        placed: list[tuple[float, float, float]] = []
        for concept in shown:
            drawing = self.sprites[concept][rng.integers(len(self.sprites[concept]))].image
            side = round(self.canvas * rng.uniform(*self.object_side))
            x, y = _free_place(placed, self.canvas, side, rng)
            placed.append((x + side / 2, y + side / 2, float(side)))
            turned = drawing.resize((side, side), Image.Resampling.BICUBIC).rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
            canvas.alpha_composite(turned, (x, y))
        return canvas.convert("RGB")


def _free_place(placed: list[tuple[float, float, float]], canvas: int, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """The first of 40 random places whose overlap with each object is small, else the one with the least overlap."""
    best, least = (0, 0), np.inf
    for _ in range(40):
        x, y = (int(v) for v in rng.integers(0, canvas - side + 1, 2))
        gaps = [(side + other) / 2 - max(abs(x + side / 2 - cx), abs(y + side / 2 - cy)) for cx, cy, other in placed]
        overlap = max(gaps, default=-1.0)
        if overlap < least:
            best, least = (x, y), overlap
        if overlap <= 0.1 * side:
            break
    return best


def _background(canvas: int, kind: str, rng: np.random.Generator) -> Image.Image:
    """White, one plain colour, or a soft mixture of four."""
    if kind == "white":
        return Image.new("RGBA", (canvas, canvas), "white")
    corners = rng.integers(90, 256, (2, 2, 3)).astype(np.uint8)
    if kind == "plain" or rng.random() < 0.5:
        return Image.new("RGBA", (canvas, canvas), tuple(int(v) for v in corners[0, 0]))
    return Image.fromarray(corners).resize((canvas, canvas), Image.Resampling.BILINEAR).convert("RGBA")


def scenes(
    *,
    vendor: HeldOut,
    n_classes: Classes,
    family_size: Count,
    n_objects: Objects,
    object_side: Range,
    distractors: Further,
    background: Annotated[str, OneOf(BACKGROUNDS)],
    canvas: Canvas,
    test_images: Count,
    train_images: Natural,
    validation_images: Natural,
    dataset_seed: Seed,
    cluster: Annotated[str, OneOf(CLUSTERS)] = "class",
    leave_out: Trained | None = None,
) -> Dataset:
    """Compose scenes of several objects.

    Args:
        vendor: The held-out vendor of the test images; the training vendors make training and validation images.
        n_classes: Number of classes.
        family_size: Number of classes that share all objects but one.
        n_objects: Number of objects per class.
        object_side: Range of the side of an object, as shares of the canvas.
        distractors: Number of random further objects per image.
        background: `plain`, `white` or `mixed`.
        canvas: Side of an image in pixels.
        test_images: Test images per class.
        train_images: Training images per class.
        validation_images: Validation images per class.
        dataset_seed: Seed of the classes and of every image.
        cluster: What the clusters of images are: `class` (images of the same four drawings) or `family` (three of the four).
        leave_out: A training vendor that makes the validation images alone, and no training image; None makes both from all of them.

    Returns:
        The data set; the descriptions of a class are the names of its objects, and a global text of one part of each.

    Raises:
        ValueError: If an argument is out of range.
    """
    pool = pool_vendors((vendor,), leave_out, "dataset.vendor")
    if background not in BACKGROUNDS:
        raise ValueError(f"dataset.background is one of {', '.join(BACKGROUNDS)}, got {background!r}")
    if cluster not in CLUSTERS:
        raise ValueError(f"dataset.cluster is one of {', '.join(CLUSTERS)}, got {cluster!r}")
    if not (n_objects >= 1 and n_classes >= 2 and family_size >= 1 and 0 < object_side[0] <= object_side[1] <= 1):
        raise ValueError(
            "scenes need n_objects >= 1, n_classes >= 2, family_size >= 1 and 0 < object_side[0] <= object_side[1] <= 1, got "
            f"{n_objects}, {n_classes}, {family_size} and {list(object_side)}"
        )
    concepts = {c["concept"]: c for c in load_concepts() if not c["unseen"]}
    names = {key: c["name"] for key, c in concepts.items()}
    sources = {"train": pool, **{v: (v,) for v in (RELATED if vendor in RELATED else (vendor,))}}
    sources |= {leave_out: (leave_out,)} if leave_out else {}
    by_vendor = {v: _sprites(load_drawings(vs, unseen=False)) for v, vs in sources.items()}
    usable = [c for c in names if all(c in by_vendor[v] for v in by_vendor)]
    by_vendor = {v: {c: sprites[c] for c in usable} for v, sprites in by_vendor.items()}
    classes = scene_classes(usable, n_classes=n_classes, family_size=family_size, n_objects=n_objects, seed=dataset_seed)
    knobs = (n_objects, tuple(object_side), distractors, background, canvas, dataset_seed)
    code = content_hash(*(Path(file).read_text(encoding="utf-8") for file in (__file__, artwork.__file__)))  # all that decides a pixel

    without = f" without {leave_out}" if leave_out else ""  # other drawings, other ids

    def split(name: str, source: str, per_class: int) -> LabelledImages:
        labels = [label for label in range(n_classes) for _ in range(per_class)]
        key = (dataset_seed, SPLIT_KEYS[name])
        opener = _Scenes(classes, by_vendor[source], labels, key, canvas, tuple(object_side), distractors, background)
        ids = [f"{name}/{dataset_seed}/{source}{without}/{classes[label]}/{index}" for index, label in enumerate(labels)]
        ids = [f"{name}-{content_hash(text)[:12]}" for text in ids]
        fingerprint = content_hash(artwork_fingerprint(), code, name, source, *knobs, *ids)
        clusters = [f"{cluster} {label if cluster == 'class' else label // family_size}" for label in labels]
        return LabelledImages(f"scenes/{name}", ids, labels, opener, fingerprint, clusters=clusters)

    class_names = [several([names[c] for c in members]) for members in classes]
    texts = [[*(names[c] for c in members), of_scene([concepts[c] for c in members])] for members in classes]
    return Dataset(
        name=f"scenes-{vendor}",
        class_names=class_names,
        descriptions=dict(zip(class_names, texts, strict=True)),
        train=split("train", "train", train_images),
        validation=split("validation", leave_out or "train", validation_images),
        test=split("test", vendor, test_images),
    )


def _sprites(drawings: list[Drawing]) -> dict[str, list[Drawing]]:
    sprites: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        sprites.setdefault(drawing.concept, []).append(drawing)
    return sprites
