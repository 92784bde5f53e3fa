"""The images that a run's record stores: rescued, lost and wrong ones as small pictures with boxes and transport plans."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from multicrop.crops.pixels import unmirrored
from multicrop.record import Predictions
from multicrop.show.explain.scored import ScoredImages

SIDE = 200  # pixels of the longer side
QUALITY = 80
KINDS = ("rescued", "lost", "wrong")


def pick(predictions: Predictions, count: int) -> list[tuple[int, str]]:
    """Positions of at most `count` images with their kind: rescued, then lost, then wrong, each kind spread over the stream.

    Rescued: only the final row is right. Lost: only the global view is right. Wrong: neither is. About half are rescued, a third lost
    and a sixth wrong; places that a kind does not fill go to the other kinds, in this order.
    """
    final, base = (predictions.correct(row) for row in ("final", "global"))
    members = {"rescued": final & ~base, "lost": ~final & base, "wrong": ~final & ~base}
    positions = {kind: np.flatnonzero(mask).tolist() for kind, mask in members.items()}
    wanted = dict(zip(KINDS, (count - count // 3 - count // 6, count // 3, count // 6), strict=True))
    share = {kind: min(wanted[kind], len(positions[kind])) for kind in KINDS}
    for kind in KINDS:
        share[kind] += min(count - sum(share.values()), len(positions[kind]) - share[kind])
    return [(position, kind) for kind in KINDS for position in spread(positions[kind], share[kind])]


def spread(items: Sequence[int], count: int) -> list[int]:
    """`count` of the items, or all where there are fewer, evenly spaced, first and last included."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def collect(run: ScoredImages, *, count: int) -> list[dict]:
    """At most `count` examples, ready for JSON.

    Args:
        run: The scored images.
        count: Most examples.

    Returns:
        Per example: image_id, kind, label, global, prediction, picture (base64 JPEG), aspect (width over height), boxes of the crops in
        0-1 of the picture and, where the aggregator has a transport plan and there are crops, plan (crops, prompts), the share of each
        crop's mass that goes to each of the `prompts` of the predicted class.
    """
    return [_example(run, position, kind) for position, kind in pick(run.predictions, count)]


def _example(run: ScoredImages, position: int, kind: str) -> dict:
    index = run.index(position)
    label, base, prediction = run.classes(position)
    picture, (width, height) = thumbnail(run, index)
    boxes = unmirrored(run.boxes(index))[1:] / torch.tensor([width, height, width, height])
    example = {
        "image_id": run.ids[index],
        "kind": kind,
        "label": label,
        "global": base,
        "prediction": prediction,
        "picture": picture,
        "aspect": round(width / height, 4),
        "boxes": [[round(v, 4) for v in box] for box in boxes.tolist()],
    }
    if run.scorer.aggregator.has_plan and example["boxes"]:
        example |= _plan(run, position, len(example["boxes"]))
    return example


def _plan(run: ScoredImages, position: int, n_crops: int) -> dict:
    """The shares of the crops (the global view is left out) and the texts of the predicted class."""
    side = run.explain(position).predicted
    return {"plan": [[round(v, 3) for v in row] for row in side.shares[-n_crops:].tolist()], "prompts": side.prompts}


def thumbnail(run: ScoredImages, index: int) -> tuple[str, tuple[int, int]]:
    """The picture as base64 JPEG, and the size (width, height) of the original; made once per process, whatever the number of runs."""
    return _thumbnail(_Key((run.fingerprint, run.ids[index], index), run.open_image))


class _Key:
    """Images by content, so that the same image of two equal data sets is one."""

    def __init__(self, key: tuple[str, str, int], open_image: Callable[[int], Image.Image]) -> None:
        self.key, self.open_image = key, open_image

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key


@lru_cache(maxsize=512)
def _thumbnail(key: _Key) -> tuple[str, tuple[int, int]]:
    picture = key.open_image(key.key[2]).convert("RGB")
    size = picture.size
    picture.thumbnail((SIDE, SIDE))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(packed.getvalue()).decode(), size


def unpacked(example: Mapping) -> Image.Image:
    """The picture of an example."""
    return Image.open(io.BytesIO(base64.b64decode(example["picture"])))
