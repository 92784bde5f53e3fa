"""Features that are computed elsewhere: the boxes and prompts to encode (export), and their features as a table (import)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import parquet
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multicrop.crops import CropPolicy
from multicrop.crops.views import image_boxes
from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError, shared_pixels
from multicrop.encoder.imported import write_table
from multicrop.files import atomic, retrying
from multicrop.text import members

BOX = ("x1", "top", "x2", "bottom")
BOXES, PROMPTS, PICTURES = "boxes.parquet", "prompts.parquet", "images"
UNIT = 1e-5  # how far from 1 the norm of a feature may be that is taken as it is
Keyed = tuple[list[str], Tensor | None, Tensor]  # image ids or texts, boxes, vectors


def export_boxes(splits: Mapping[str, LabelledImages], policy: CropPolicy, seed: int, folder: Path, *, pictures: bool = False) -> int:
    """Write the boxes of all views to ``boxes.parquet``: split, image_id, file, view, x1, top, x2, bottom.

    Boxes are in pixels of the upright RGB image; view 0 is the whole image. A crop with x1 > x2 is mirrored after cutting.

    Args:
        splits: Images by the name of their split; unreadable ones are left out.
        policy: The crop policy, with an encoder where it looks at the image.
        seed: Seed of the crops.
        folder: The folder to write to.
        pictures: Whether to write each image as PNG as well; the column ``file`` names it, and is null otherwise.

    Returns:
        The number of views.

    Raises:
        ValueError: If the policy cuts tokens of an image tower.
    """
    if policy.looks_at == "tokens":
        raise ValueError("crop=feature cuts tokens of an image tower, which cannot be encoded elsewhere; choose a policy that cuts pixels")
    rows: list[dict[str, object]] = []
    for split, images in splits.items():
        for index, image_id in enumerate(images.ids):
            try:
                image = retrying(lambda index=index, images=images: images.open(index), image_id)
            except ImageError:
                continue
            file = f"{PICTURES}/{split}-{index:06d}.png" if pictures else None
            if file:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                with atomic(folder / file) as partial:
                    image.save(partial, format="PNG")
            boxes = image_boxes(shared_pixels(image), image_id, policy, seed).tolist()
            place = {"split": split, "image_id": image_id, "file": file}
            rows += [{**place, "view": view, **dict(zip(BOX, box, strict=True))} for view, box in enumerate(boxes)]
    schema = {**dict.fromkeys(("split", "image_id", "file"), pa.string()), "view": pa.int32(), **dict.fromkeys(BOX, pa.float32())}
    _write(folder / BOXES, pa.Table.from_pylist(rows, schema=pa.schema(schema)))
    return len(rows)


def export_prompts(prompts: Iterable[Iterable[str]], folder: Path) -> int:
    """Write the distinct texts of the prompts of all classes to ``prompts.parquet`` (text), and return their number."""
    texts = list(dict.fromkeys(text for row in prompts for prompt in row for text in members(prompt)))
    _write(folder / PROMPTS, pa.table({"text": pa.array(texts, pa.string())}))
    return len(texts)


def import_features(images: Sequence[Path], texts: Sequence[Path], folder: Path, *, name: str, logit_scale: float) -> tuple[int, int]:
    """Make a table of features that were computed elsewhere, for ``model=imported model.path=FOLDER``.

    A Parquet file has the columns image_id, x1, top, x2, bottom, vector, or text, vector. A safetensors file has the tensors ``boxes``
    (rows, 4) and ``vectors`` (rows, dim), and in its metadata a JSON list ``image_ids``, or ``vectors`` and a JSON list ``texts``.

    Args:
        images: Files of the features of views; features are scaled to unit norm.
        texts: Files of the features of texts.
        folder: The folder to write.
        name: The name of the model in records.
        logit_scale: Multiplier of cosine similarities.

    Returns:
        The numbers of views and of texts.

    Raises:
        ValueError: If a file cannot be read, lacks a column, holds a feature that is null, zero or not finite, or features of another
            length, or if a box or a text has two different features.
    """
    if not logit_scale > 0:
        raise ValueError(f"--logit-scale multiplies cosine similarities and is over 0 (100 for OpenAI CLIP), got {logit_scale}")
    views: dict[str, dict[tuple[float, ...], Tensor]] = {}
    for path in images:
        ids, boxes, vectors = _read(path, "image_id")
        for image_id, box, vector in zip(ids, [] if boxes is None else boxes.tolist(), vectors, strict=True):
            _enter(views.setdefault(image_id, {}), tuple(box), vector, f"the box {box} of the image {image_id!r}")
    prompts: dict[str, Tensor] = {}
    for path in texts:
        keys, _, vectors = _read(path, "text")
        for text, vector in zip(keys, vectors, strict=True):
            _enter(prompts, text, vector, f"the text {text!r}")
    lengths = {len(vector) for own in [*views.values(), prompts] for vector in own.values()}
    if len(lengths) != 1 or not views or not prompts:
        raise ValueError(
            f"features of images and texts have one length, got {sorted(lengths)} from {len(views)} images and {len(prompts)} texts; "
            "take both from one model"
        )
    tables = {image_id: (torch.tensor(list(own)), torch.stack(list(own.values()))) for image_id, own in views.items()}
    write_table(folder, tables, prompts, name=name, logit_scale=logit_scale)
    return sum(map(len, views.values())), len(prompts)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        parquet.write_table(table, partial)


def _enter(known: dict, key: object, vector: Tensor, what: str) -> None:
    if key in known and not torch.equal(known[key], vector):
        raise ValueError(f"{what} has two different features; remove one, and give images of different splits different ids")
    known[key] = vector


def _read(path: Path, key: str) -> Keyed:
    """The image ids or texts of a file, the boxes of images, and features of unit norm."""
    try:
        keys, boxes, vectors = (_safetensors if path.suffix == ".safetensors" else _parquet)(path, key)
    except (OSError, KeyError, TypeError, SafetensorError, pa.ArrowException) as error:
        raise ValueError(f"{path} holds no features that can be read ({error}); see multicrop features import --help") from error
    norms = vectors.norm(dim=-1, keepdim=True)
    if bad := (~(norms.isfinite() & (norms > 0))).nonzero()[:, 0].tolist():
        raise ValueError(f"{len(bad)} features of {path} are zero or not finite, the first that of {keys[bad[0]]!r}; encode them again")
    return keys, boxes, torch.where((norms - 1).abs() < UNIT, vectors, vectors / norms)


def _parquet(path: Path, key: str) -> Keyed:
    names = [key, *(BOX if key == "image_id" else ()), "vector"]
    table = parquet.read_table(path, columns=names).combine_chunks()
    if table.column_names != names or any(table[name].null_count for name in names):
        raise KeyError(f"columns {', '.join(names)} without nulls are expected, got {', '.join(table.column_names)}")
    lists = table["vector"].combine_chunks()
    if len({len(vector) for vector in lists}) != 1:
        raise TypeError("its vectors are of several lengths" if len(lists) else "it has no rows")
    vectors = torch.tensor(lists.flatten().to_numpy(zero_copy_only=False)).float().reshape(len(lists), -1)
    boxes = torch.stack([torch.tensor(table[name].to_numpy()).float() for name in BOX], 1) if key == "image_id" else None
    return [str(value) for value in table[key].to_pylist()], boxes, vectors


def _safetensors(path: Path, key: str) -> Keyed:
    with safe_open(path, "pt") as stream:
        keys = json.loads((stream.metadata() or {})[f"{key}s"])
        vectors, boxes = stream.get_tensor("vectors").float(), stream.get_tensor("boxes").float() if key == "image_id" else None
    if len(keys) != len(vectors) or (boxes is not None and boxes.shape != (len(keys), 4)):
        raise TypeError(f"{len(keys)} {key}s, vectors {tuple(vectors.shape)}, boxes {None if boxes is None else tuple(boxes.shape)}")
    return keys, boxes, vectors
