"""The report: one HTML page that carries its data, its pictures and plotly, packed, and asks no network."""

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import numpy as np

from multicrop.comparison.leaderboard import PARTS, Block, Entry
from multicrop.comparison.tables import entry_values

MOST_PICTURES = 300  # distinct pictures in a page
MOST_WITH_PICTURES = 40  # methods whose pictures it carries, best first


def page(blocks: Sequence[Block], *, baseline: str, pictures: int = MOST_PICTURES) -> str:
    """The page of these blocks; names of classes, images and folders reach it as data and are shown as text, never as markup."""
    parts = {name: files(__package__).joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    data = _packed(json.dumps(page_data(blocks, baseline, pictures)))
    values = {"STYLE": parts["css"], "DATA": data, "PLOTLY": _plotly(), "SCRIPT": parts["js"]}
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
        "notes": list(dict.fromkeys(note for block in blocks for note in block.notes)),
        "blocks": [{"name": block.name, "classes": block.first.class_names} for block in blocks],
        "entries": entries,
        "examples": examples,
        "pictures": packed,
    }


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
    images = np.bincount(record.table["label"], minlength=count)
    right = np.bincount(record.table["label"], weights=correct.mean(0), minlength=count)
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
    return kept, list(places)


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def _plotly() -> str:
    return _packed(files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8"))
