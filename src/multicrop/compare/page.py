"""The report: one HTML page that carries its data, its pictures and plotly, packed, and asks no network.

`plotly.min.js.gz` is plotly.js' own bundle of Cartesian plots (MIT, plotly.LICENSE), a third of the whole; tools/plotly.sh fetches it.
"""

import base64
import gzip
import io
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from PIL import Image

from multicrop.compare.leaderboard import PARTS, Block, Entry
from multicrop.compare.tables import block_family, entry_values

MOST_PICTURES = 300  # distinct pictures in a page
MOST_WITH_PICTURES = 40  # methods whose pictures it carries, best first
QUALITY = 70  # of WebP


def page(blocks: Sequence[Block], *, baseline: str, pictures: int = MOST_PICTURES) -> str:
    """The page of these blocks; names of classes, images and folders reach it as data and are shown as text, never as markup."""
    parts = {name: files("multicrop.compare").joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    data = gzip.compress(json.dumps(page_data(blocks, baseline, pictures)).encode(), 9, mtime=0)
    plotly = files("multicrop.compare").joinpath("plotly.min.js.gz").read_bytes()
    packed = {name: base64.b64encode(content).decode() for name, content in {"DATA": data, "PLOTLY": plotly}.items()}
    values = {"STYLE": parts["css"], **packed, "SCRIPT": parts["js"]}
    text = parts["html"]
    for name, value in values.items():
        text = text.replace(f"/*{name}*/", value)
    return text


def page_data(blocks: Sequence[Block], baseline: str, pictures: int) -> dict:
    """What the page shows: entries with their accuracies by class (in thousandths), the blocks, and the examples of the best entries."""
    pairs = [(number, entry) for number, block in enumerate(blocks) for entry in block.entries]
    entries = [{"id": index, "block": number, **_entry(entry)} for index, (number, entry) in enumerate(pairs)]
    examples, packed = _examples([(e["id"], entry) for e, (_, entry) in zip(entries, pairs, strict=True)], pictures)
    return {
        "baseline": baseline,
        "runs": sum(len(entry.records) for _, entry in pairs),
        "blocks": [_block(block, baseline, blocks) for block in blocks],
        "entries": entries,
        "examples": examples,
        "pictures": packed,
    }


def _block(block: Block, baseline: str, among: Sequence[Block]) -> dict:
    """The first block on the same images, what is said below the table of this block, and the names of the classes."""
    images = next(number for number, other in enumerate(among) if other.first.same_images(block.first))
    notes = [block_family(block, baseline), *block.notes]
    return {"images": images, "data": block.data, "task": block.task, "notes": notes, "classes": block.first.class_names}


def _entry(entry: Entry) -> dict:
    """One line of the leaderboard, with what the filters and the plots ask for."""
    values, record = entry_values(entry), entry.records[0]
    chosen = record.choices
    part = " ".join(chosen.get(name, "") for name in PARTS.get(chosen["task"], ()))
    by_class = {"classes": class_accuracy(entry, entry.correct), "base": class_accuracy(entry, entry.baseline)}
    own = {name: chosen.get(name, "") for name in ("task", "crop", "aggregator", "model")}
    shots = record.knobs.get("task.shots") if chosen["task"] == "few_shot" else None
    numbers = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items() if k not in ("method", "p_value")}
    numbers = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in numbers.items()}
    return {"label": entry.label, "part": part, "shots": shots, **own, **numbers, **by_class}


def class_accuracy(entry: Entry, correct: np.ndarray | None) -> list[int | None]:
    """Accuracy in thousandths of each class, None where it has no images or there is nothing to say."""
    record = entry.records[0]
    count = len(record.class_names)
    if correct is None:
        return [None] * count
    images = np.bincount(record.predictions.label, minlength=count)
    right = np.bincount(record.predictions.label, weights=correct.mean(0), minlength=count)
    return [round(1000 * r / n) if n else None for r, n in zip(right.tolist(), images.tolist(), strict=True)]


def _examples(entries: Sequence[tuple[int, Entry]], most: int) -> tuple[dict[int, list[dict]], list[str]]:
    """The examples of the best entries, each picture once, as long as there is room."""
    kept: dict[int, list[dict]] = {}
    places: dict[str, int] = {}
    for index, entry in sorted(entries, key=lambda pair: -pair[1].accuracy):
        if len(kept) == MOST_WITH_PICTURES or len(places) >= most:
            break
        for example in entry.records[0].examples():
            picture = example.get("picture", "")
            if picture in places or len(places) < most:
                kept.setdefault(index, []).append({**example, "picture": places.setdefault(picture, len(places))})
    return kept, [_webp(picture) for picture in places]


def _webp(picture: str) -> str:
    """A picture of a record (base64 JPEG) as base64 WebP of half the bytes."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).save(packed, "WEBP", quality=QUALITY)
    return base64.b64encode(packed.getvalue()).decode()
