"""The report: one HTML page with compressed data, pictures and plotly inside, which needs no network.

`plotly.min.js.gz` is the bundle of Cartesian plots of plotly.js (MIT, plotly.LICENSE); tools/plotly.sh downloads it.
"""

import base64
import gzip
import io
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from PIL import Image

from multicrop.compare.details import group_accuracy
from multicrop.compare.leaderboard import Block, Entry
from multicrop.compare.tables import block_family, entry_values

MOST_PICTURES = 300  # distinct pictures in a page
MOST_WITH_PICTURES = 40  # methods with pictures in a page, best first
QUALITY = 70  # of WebP


def page(blocks: Sequence[Block], *, baseline: str, pictures: int = MOST_PICTURES) -> str:
    """Make the HTML page of some blocks. Names of classes, images and folders are shown as text, never as markup.

    Args:
        blocks: Blocks of compared methods.
        baseline: Name of the baseline.
        pictures: Most distinct pictures in the page; 0 for none.

    Returns:
        The HTML text.
    """
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
    """The data of the page: entries with accuracy per class (in thousandths), blocks, and examples of the best entries."""
    pairs = [(number, entry) for number, block in enumerate(blocks) for entry in block.entries]
    entries = [{"id": index, "block": number, **_entry(entry)} for index, (number, entry) in enumerate(pairs)]
    examples, packed = _examples([(e["id"], entry) for e, (_, entry) in zip(entries, pairs, strict=True)], pictures)
    return {
        "baseline": baseline,
        "runs": len({run.folder for _, entry in pairs for run in entry.runs}),
        "blocks": [_block(block, baseline, blocks) for block in blocks],
        "entries": entries,
        "examples": examples,
        "pictures": packed,
    }


def _block(block: Block, baseline: str, among: Sequence[Block]) -> dict:
    """One block: the number of the first block on the same images, the notes below the table, and the class names."""
    images = next(number for number, other in enumerate(among) if other.first.same_images(block.first))
    notes = [block_family(block, baseline), *block.notes]
    return {"images": images, "data": block.data, "task": block.task, "notes": notes, "classes": block.first.class_names}


def _entry(entry: Entry) -> dict:
    """One line of the leaderboard, with the values that filters and plots need."""
    values, run = entry_values(entry), entry.runs[0]
    chosen = run.choices
    by_class = {"classes": class_accuracy(entry, entry.correct), "base": class_accuracy(entry, entry.baseline)}
    own = {name: chosen.get(name, "") for name in ("task", "crop", "aggregator", "model")}
    numbers = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items() if k not in ("method", "p_value")}
    numbers = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in numbers.items()}
    return {"label": entry.label, "part": " ".join(run.task_options.values()), "shots": run.shots, **own, **numbers, **by_class}


def class_accuracy(entry: Entry, correct: np.ndarray | None) -> list[int | None]:
    """Accuracy per class in thousandths; None for a class without images, and for all classes without ``correct``."""
    run = entry.runs[0]
    if correct is None:
        return [None] * len(run.class_names)
    accuracies = group_accuracy(correct, run.sorted_predictions.label, len(run.class_names))
    return [None if np.isnan(value) else round(1000 * value) for value in accuracies.tolist()]


def _examples(entries: Sequence[tuple[int, Entry]], most: int) -> tuple[dict[int, list[dict]], list[str]]:
    """The examples of the best entries within the limits, and the distinct pictures that they refer to by number."""
    kept: dict[int, list[dict]] = {}
    places: dict[str, int] = {}
    for index, entry in sorted(entries, key=lambda pair: -pair[1].accuracy):
        if len(kept) == MOST_WITH_PICTURES or len(places) >= most:
            break
        for example in entry.runs[0].examples():
            picture = example.get("picture", "")
            if picture in places or len(places) < most:
                kept.setdefault(index, []).append({**example, "picture": places.setdefault(picture, len(places))})
    return kept, [_webp(picture) for picture in places]


def _webp(picture: str) -> str:
    """A picture of a record (base64 JPEG) as base64 WebP, which is half as large."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).save(packed, "WEBP", quality=QUALITY)
    return base64.b64encode(packed.getvalue()).decode()
