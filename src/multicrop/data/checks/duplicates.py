"""Images that are in two splits: the same pixels, or nearly (a 64-bit difference hash, then a comparison of small thumbnails)."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8
from PIL import Image

BITS, BANDS = 64, 5
NEAR_BITS = BANDS - 1  # codes that differ in at most 4 bits agree in one of 5 bands, so no near pair is missed
NEAR_LEVELS = 6.0  # grey levels of 255 by which two 16 x 16 thumbnails may differ on average
THUMB = 16


@dataclass(frozen=True)
class Print:
    """The print of an image: its split and id, a hash of its pixels, its difference hash, and a grey thumbnail."""

    split: str
    image_id: str
    pixels: str
    code: int
    thumb: UInt8[np.ndarray, "16 16"]


@dataclass(frozen=True)
class Pair:
    """Two images of different splits; `kind` is exact or near, `distance` the mean difference of their thumbnails in grey levels of 255."""

    kind: str
    first: tuple[str, str]
    second: tuple[str, str]
    distance: float = field(default=0.0, compare=False)


def fingerprint(split: str, image_id: str, image: Image.Image) -> Print:
    """The print of an RGB image. The difference hash compares the neighbours in each row of a 9 x 8 grey image, one bit per pair."""
    grey = image.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    code = int(np.packbits(bits).view(">u8")[0])
    thumb = np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX), dtype=np.uint8)
    pixels = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
    return Print(split, image_id, pixels, code, thumb)


def between_splits(prints: Sequence[Print]) -> list[Pair]:
    """All pairs of images of different splits that are exactly or nearly the same, each pair once, exact ones first."""
    found: dict[tuple[int, int], tuple[str, float]] = {}
    same: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(prints):
        same[entry.pixels].append(index)
    for members in same.values():
        for a, b in _across(members, prints):
            found[a, b] = "exact", 0.0
    for a, b in _near_codes(prints):
        if (a, b) not in found and (distance := _difference(prints[a], prints[b])) <= NEAR_LEVELS:
            found[a, b] = "near", distance
    named = [(prints[i].split, prints[i].image_id) for i in range(len(prints))]
    pairs = [Pair(kind, named[a], named[b], distance) for (a, b), (kind, distance) in sorted(found.items())]
    return sorted(pairs, key=lambda pair: (pair.kind, pair.distance))


def _across(members: Sequence[int], prints: Sequence[Print]) -> Iterator[tuple[int, int]]:
    for position, a in enumerate(members):
        for b in members[position + 1 :]:
            if prints[a].split != prints[b].split:
                yield a, b


def _difference(a: Print, b: Print) -> float:
    return float(np.abs(a.thumb.astype(np.int16) - b.thumb.astype(np.int16)).mean())


def _near_codes(prints: Sequence[Print]) -> Iterator[tuple[int, int]]:
    """Pairs (a < b) of different splits whose codes differ in at most NEAR_BITS bits; pairs may repeat."""
    if not prints:
        return
    codes = np.array([entry.code for entry in prints], dtype=np.uint64)
    splits = np.unique([entry.split for entry in prints], return_inverse=True)[1]
    edges = np.linspace(0, BITS, BANDS + 1).astype(int)
    for low, high in pairwise(edges):
        band = (codes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for position, a in enumerate(members[:-1]):
                others = members[position + 1 :]
                near = (np.bitwise_count(codes[others] ^ codes[a]) <= NEAR_BITS) & (splits[others] != splits[a])
                for b in others[near]:
                    yield (int(a), int(b)) if a < b else (int(b), int(a))
