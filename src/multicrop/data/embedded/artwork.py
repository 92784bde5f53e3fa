"""The embedded artwork: open drawings of faces, animals and food, each with its vendor, licence and concept."""

import hashlib
import io
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
from PIL import Image

from multicrop.config.ranges import OneOf

EMBEDDED = Path(__file__).parent
TRAINING_VENDORS = ("noto", "twemoji", "fluent-flat", "emojione", "fxemoji")
HELD_OUT_VENDORS = ("fluent-3d", "noto-v1", "streamline")  # near, middle and far, by likeness to the training drawings
Trained = Annotated[str, OneOf(TRAINING_VENDORS)]
HeldOut = Annotated[str, OneOf(HELD_OUT_VENDORS)]


@dataclass(frozen=True)
class Drawing:
    """One drawing with alpha, 96 x 96, and where it comes from; decoded when its image is first asked for."""

    webp: bytes = field(repr=False)
    concept: str
    name: str
    group: str
    unseen: bool
    vendor: str

    @cached_property
    def image(self) -> Image.Image:
        """The RGBA picture."""
        return Image.open(io.BytesIO(self.webp)).convert("RGBA")


def load_concepts() -> list[dict]:
    """The 372 concepts in Unicode order: concept, name, group, keywords, parts, unseen."""
    return json.loads((EMBEDDED / "concepts.json").read_text(encoding="utf-8"))


def load_drawings(vendors: tuple[str, ...], *, unseen: bool) -> list[Drawing]:
    """The drawings of these vendors, of the seen concepts or of the 28 unseen ones, in the order of the pack."""
    columns = ["image", "concept", "name", "group", "unseen", "vendor"]
    rows = pq.ParquetFile(EMBEDDED / "emoji.parquet").read(columns).to_pylist()  # pq.read_table would import pandas
    return [Drawing(row.pop("image")["bytes"], **row) for row in rows if row["vendor"] in vendors and row["unseen"] == unseen]


def training_drawings() -> list[Drawing]:
    """The drawings that the embedded model may be trained on: seen concepts of the training vendors."""
    return load_drawings(TRAINING_VENDORS, unseen=False)


def pool_vendors(test: Collection[str], leave_out: str | None, knob: str) -> tuple[str, ...]:
    """The training vendors without the one that is left out to validate on; raises ValueError where a vendor has another role.

    `knob` names the test vendors in the message.
    """
    if wrong := [vendor for vendor in test if vendor not in HELD_OUT_VENDORS]:
        raise ValueError(f"{knob} is one of the held-out vendors {', '.join(HELD_OUT_VENDORS)}, got {', '.join(wrong)}")
    if leave_out is not None and leave_out not in TRAINING_VENDORS:
        raise ValueError(f"dataset.leave_out is one of the training vendors {', '.join(TRAINING_VENDORS)}, or null; got {leave_out!r}")
    return tuple(vendor for vendor in TRAINING_VENDORS if vendor != leave_out)


@cache
def artwork_fingerprint() -> str:
    """A hash of the embedded drawings and concepts."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("emoji.parquet", "concepts.json"):
        digest.update((EMBEDDED / name).read_bytes())
    return digest.hexdigest()
