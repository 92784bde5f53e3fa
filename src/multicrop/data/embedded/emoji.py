"""`dataset=emoji`: single drawings; vendors are domains, and three of them are held out from training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from PIL import Image

from multicrop.config.ranges import OneOf
from multicrop.data.base import Dataset, LabelledImages
from multicrop.data.embedded.artwork import Drawing, HeldOut, Trained, artwork_fingerprint, load_concepts, load_drawings, pool_vendors
from multicrop.data.embedded.whole import of_drawing
from multicrop.files import content_hash

GROUPS = ("all", "faces", "animals", "food")
Group = Annotated[str, OneOf(GROUPS)]


@dataclass(frozen=True)
class _OnWhite:
    """Opens a drawing on a white canvas."""

    drawings: list[Drawing]

    def __call__(self, index: int) -> Image.Image:
        drawing = self.drawings[index].image
        return Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")


def emoji(*, vendors: Sequence[HeldOut], group: Group, unseen: bool, leave_out: Trained | None = None) -> Dataset:
    """Build the data set of single drawings on white.

    Args:
        vendors: Held-out vendors, whose drawings are the test images; the training vendors are the few-shot pool.
        group: `faces`, `animals`, `food` or `all`.
        unseen: Whether to take the 28 concepts that the embedded model never saw instead of the 344 others.
        leave_out: A training vendor whose drawings are the validation images and leave the pool; None gives no validation images.

    Returns:
        The data set; an id is vendor/concept, a domain is a vendor.

    Raises:
        ValueError: If a vendor has another role, or the group does not exist.
    """
    if group not in GROUPS:
        raise ValueError(f"dataset.group is one of {', '.join(GROUPS)}, got {group!r}")
    pool = pool_vendors(vendors, leave_out, "dataset.vendors")
    concepts = [c for c in load_concepts() if c["unseen"] == unseen and group in ("all", c["group"])]
    row = {concept["concept"]: index for index, concept in enumerate(concepts)}

    def split(name: str, chosen: tuple[str, ...]) -> LabelledImages:
        drawings = [d for d in load_drawings(chosen, unseen=unseen) if d.concept in row]
        ids = [f"{d.vendor}/{d.concept}" for d in drawings]
        fingerprint = content_hash(artwork_fingerprint(), "on white", *ids)
        labels = [row[d.concept] for d in drawings]
        return LabelledImages(name, ids, labels, _OnWhite(drawings), fingerprint, [d.vendor for d in drawings])

    train = split("emoji/train", pool)
    return Dataset(
        name="emoji" + ("" if group == "all" else f"-{group}") + ("-unseen" if unseen else ""),
        class_names=[concept["name"] for concept in concepts],
        descriptions={concept["name"]: [*concept["parts"], of_drawing(concept)] for concept in concepts},
        train=train,
        validation=split("emoji/validation", (leave_out,)) if leave_out else train.subset([]),
        test=split("emoji/test", tuple(vendors)),
    )
