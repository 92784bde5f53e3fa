"""The images that a run keeps in its record: rescued, lost and wrong ones as small pictures with boxes and transport plans."""

import base64
import io
from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from multicrop.aggregators import transport_plan
from multicrop.crops.pixels import unmirrored
from multicrop.data.base import LabelledImages
from multicrop.features import FeatureBank
from multicrop.text import TextBank

SIDE = 200  # pixels of the longer side
QUALITY = 80
KINDS = ("rescued", "lost", "wrong")


def pick(collected: dict[str, Tensor], count: int) -> list[tuple[int, str]]:
    """Positions in the stream with their kind, spread over the stream: half rescued (only the final row right), then lost (only the
    global view right), then wrong in both; a kind with too few leaves its places to the others.
    """
    final, base = (collected[row].argmax(1) == collected["label"] for row in ("final", "global"))
    members = {"rescued": final & ~base, "lost": ~final & base, "wrong": ~final & ~base}
    positions = {kind: mask.nonzero().squeeze(1).tolist() for kind, mask in members.items()}
    wanted = dict(zip(KINDS, (count - count // 3 - count // 6, count // 3, count // 6), strict=True))
    share = {kind: min(wanted[kind], len(positions[kind])) for kind in KINDS}
    for kind in KINDS:
        share[kind] += min(count - sum(share.values()), len(positions[kind]) - share[kind])
    return [(position, kind) for kind in KINDS for position in spread(positions[kind], share[kind])]


def spread(items: Sequence[int], count: int) -> list[int]:
    """`count` of the items, evenly spaced, first and last included."""
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(min(count, len(items)))]


def collect(
    bank: FeatureBank, collected: dict[str, Tensor], text: TextBank, class_names: list[str], *, count: int, plan_knobs: dict | None
) -> list[dict]:
    """At most `count` examples, ready for JSON: id, kind, names, picture (base64 JPEG), boxes in 0-1 of the picture, plan and its texts.

    `plan_knobs` are those of `transport_plan`, None where the aggregator is no transport; the
    plan (crops, prompts) is that of the predicted class and holds shares of each crop's mass.
    """
    picked = pick(collected, count)
    indices = [int(collected["index"][position]) for position, _ in picked]
    made = []
    for index, (position, kind) in zip(indices, picked, strict=True):
        label, base, final = (int(v[position]) for v in (collected["label"], collected["global"].argmax(1), collected["final"].argmax(1)))
        picture, (width, height) = thumbnail(bank.images, index)
        boxes = unmirrored(bank.boxes(index))[1:] / torch.tensor([width, height, width, height])
        example = {
            "image_id": bank.images.ids[index],
            "kind": kind,
            "label": class_names[label],
            "global": class_names[base],
            "prediction": class_names[final],
            "picture": picture,
            "aspect": round(width / height, 4),
            "boxes": [[round(v, 4) for v in box] for box in boxes.tolist()],
        }
        made.append(example)
    if not plan_knobs or not made or not made[0]["boxes"]:
        return made
    row_of = {index: position for position, index in enumerate(bank.positions)}
    views = torch.stack([bank[row_of[index]][0] for index in indices])
    classes = [int(collected["final"][position].argmax()) for position, _ in picked]
    return [example | plan for example, plan in zip(made, _plans(views, text, classes, plan_knobs), strict=True)]


@torch.inference_mode()
def _plans(views: Tensor, text: TextBank, classes: Sequence[int], knobs: dict) -> list[dict]:
    """How the crops of each image (images, views, dim) were divided over the texts of its class.

    The other classes are solved too where the masses compare them, and left out where both are uniform.
    """
    apart = all(knobs.get(name, "uniform") == "uniform" for name in ("view_marginal", "prompt_marginal"))
    wanted = sorted(set(classes)) if apart else list(range(len(text.prompts)))
    some = TextBank(text.features[wanted], text.mask[wanted], [text.prompts[c] for c in wanted])
    _, plans, used = transport_plan(views, some, **knobs)
    made = []
    for plan, class_index in zip(plans, (wanted.index(c) for c in classes), strict=True):
        mass = plan[class_index, :, : int(used.mask[class_index].sum())]
        mass = mass[1:] if len(mass) == views.shape[1] else mass  # boxes are those of the crops
        share = mass / mass.sum(1, keepdim=True).clamp_min(1e-12)
        made.append({"plan": [[round(v, 3) for v in row] for row in share.tolist()], "prompts": used.prompts[class_index]})
    return made


def thumbnail(images: LabelledImages, index: int) -> tuple[str, tuple[int, int]]:
    """The picture as base64 JPEG, and the size (width, height) of the original; made once in a process, whatever the number of runs."""
    return _thumbnail(_Key(images.fingerprint, index, images))


class _Key:
    """Images by content, so that the same image of two equal data sets is one."""

    def __init__(self, fingerprint: str, index: int, images: LabelledImages) -> None:
        self.key, self.images = (fingerprint, images.ids[index], index), images

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key


@lru_cache(maxsize=512)
def _thumbnail(key: _Key) -> tuple[str, tuple[int, int]]:
    picture: Image.Image = key.images.open(key.key[2]).convert("RGB")
    size = picture.size
    picture.thumbnail((SIDE, SIDE))
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(packed.getvalue()).decode(), size


def unpacked(example: dict) -> Image.Image:
    """The picture of an example."""
    return Image.open(io.BytesIO(base64.b64decode(example["picture"])))
