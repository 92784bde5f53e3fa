"""Synthetic records for the tests of comparison, page and dashboard, written by the code that writes real ones."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from multicrop.compare.statistics import compare
from multicrop.files import Identity
from multicrop.record import Predictions, write_record

NAMES = ["okapi", "dugong", "axolotl", "quokka"]


def picture(colour=(200, 40, 40)):
    """A small JPEG as examples.json keeps it."""
    packed = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(packed, "JPEG")
    return base64.b64encode(packed.getvalue()).decode()


def example(kind="rescued", names=NAMES, colour=(200, 40, 40), image_id="image-0"):
    facts = {"image_id": image_id, "kind": kind, "label": names[0], "global": names[1], "prediction": names[0]}
    shown = {"picture": picture(colour), "aspect": 1.5, "boxes": [[0.1, 0.1, 0.6, 0.7], [0.4, 0.2, 0.9, 0.9]]}
    return facts | shown | {"plan": [[0.9, 0.1], [0.2, 0.8]], "prompts": [f"a photo of {names[0]}", "long legs"]}


def predicted(labels, rate, rng, classes):
    """Predictions that are right at this rate."""
    return np.where(rng.random(len(labels)) < rate, labels, (labels + rng.integers(1, classes, len(labels))) % classes)


def write(
    folder: Path,
    *,
    accuracy=0.7,
    base=0.6,
    seed=1,
    aggregator="dnd",
    crop="random_k4",
    views=5,
    task="zero_shot",
    knobs=None,
    images=120,
    names=NAMES,
    fingerprint="f",
    split="test",
    examples=(),
    draw=0,
    domains=("photo", "sketch"),
    clusters=(),
    data_seed=None,
    facts=None,
    parts=None,
    ranks=False,
    beside=(),
) -> Path:
    """One record; the global view's predictions depend on the images alone, the final ones on `draw`."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(images) % len(names)
    rng = np.random.default_rng(10_000 + draw)
    rows = {row: predicted(labels, base, np.random.default_rng(5), len(names)) for row in ("global", "crops_mean")}
    rows["final"] = rows["aggregated"] = predicted(labels, accuracy, rng, len(names))
    rows |= {f"beside/{name}": predicted(labels, 0.65, np.random.default_rng(number), len(names)) for number, name in enumerate(beside)}
    order = np.random.default_rng(draw).permutation(images)  # streams come in any order
    own = [domains[i % len(domains)] for i in order]
    ids, shared = [f"image-{i:05d}" for i in order], [clusters[i] for i in order if clusters]
    ranked = {row: np.where(v == labels, 0, 1 + labels % len(names))[order] for row, v in rows.items()} if ranks else {}
    predictions = Predictions(ids, labels[order], {row: v[order] for row, v in rows.items()}, own, shared, ranked)
    numbers = {}
    for row, values in rows.items():
        compared = compare(values == labels, rows["global"] == labels, clusters=clusters)
        read = {"global": 1, "crops_mean": max(1, views - 1)}.get(row, views)
        numbers[row] = {"accuracy": float((values == labels).mean()), "views": read, **vars(compared)}
    choices = {"task": task, "crop": crop, "aggregator": aggregator, "model": "tiny", "dataset": "zoo", "adapter": "tip", "method": "tda"}
    config = {"seed": seed, "split": split, "task": {"name": task, **(knobs or {})}, "crop": {"_target_": f"x.{crop}"}}
    config |= {} if data_seed is None else {"dataset": {"dataset_seed": data_seed}}
    config["aggregator"] = {"_target_": f"x.{aggregator}"}
    config["task"] |= {"beside": {name: {"_target_": f"x.{name}"} for name in beside}} if beside else {}
    write_record(
        folder,
        config=config,
        metrics={"rows": numbers, "views_per_image": views, "row_seconds": {"aggregated": 0.5, "final": 0.25}, "images": images},
        predictions=predictions,
        environment={"choices": choices, **(facts or {})},
        data={"dataset": "zoo", "split": split, "fingerprint": fingerprint, "class_names": list(names)},
        examples=list(examples),
        identity=Identity(parts) if parts else None,
        model={"name": "tiny", "architecture": "CLIPModel", "parameters": 1_234_567, "weights": "5eed", "precision": "fp32"},
    )
    return folder
