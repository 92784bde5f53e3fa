"""The report: one HTML page with compressed data, pictures and plotly inside, which needs no network.

`plotly.min.js.gz` is the bundle of Cartesian plots of plotly.js (MIT, plotly.LICENSE); tools/plotly.sh downloads it.
"""

import base64
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

import numpy as np
from PIL import Image

from multicrop.compare.details import group_accuracy
from multicrop.compare.leaderboard import Block, Entry
from multicrop.compare.tables import block_family, entry_values, leaderboard_table
from multicrop.compare.trust_tables import SHOWN, STABLE, measures_of

MOST_PICTURES = 300  # distinct pictures in a page
MOST_WITH_PICTURES = 40  # methods with pictures in a page, best first
QUALITY = 70  # of WebP
SORTED_BY = {
    "method": "label",
    "runs": "runs",
    "top-1 %": "accuracy",
    "p (Holm)": "p_holm",
    "rescued / lost": "rescued",
    "views": "encoder_calls",
}
FIRST = ("method", "top-1 %")
SECONDS = "seconds"  # a column that the terminal's table lacks, as it does those of TRUST
TRUST = {name: f"{SHOWN[name]} %" for name in ("adaptive_ece", "aurc", "auroc_mcm", "fpr95_mcm", STABLE)}


def page(blocks: Sequence[Block], *, baseline: str, pictures: int = MOST_PICTURES) -> str:
    """Make the HTML page of some blocks. Names of classes, images and folders are shown as text, never as markup.

    Args:
        blocks: Blocks of compared methods.
        baseline: Name of the baseline.
        pictures: Most distinct pictures in the page; 0 for none.

    Returns:
        The HTML text.
    """
    folder = files("multicrop.compare")
    parts = {name: folder.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js", "plots.js")}
    data = gzip.compress(json.dumps(page_data(blocks, baseline, pictures)).encode(), 9, mtime=0)
    plotly = folder.joinpath("plotly.min.js.gz").read_bytes()
    packed = {name: base64.b64encode(content).decode() for name, content in {"DATA": data, "PLOTLY": plotly}.items()}
    values = {"STYLE": parts["css"], **packed, "PLOTS": parts["plots.js"], "SCRIPT": parts["js"]}
    text = parts["html"]
    for name, value in values.items():
        text = text.replace(f"/*{name}*/", value)
    return text


def page_data(blocks: Sequence[Block], baseline: str, pictures: int) -> dict:
    """The data of the page: entries with accuracy per class (in thousandths), blocks, and examples of the best entries.

    The cells of an entry are those of the terminal's table, so that a number is rounded in one place.
    """
    entries: list[Entry] = []
    lines = []
    for number, block in enumerate(blocks):
        for entry, cells in zip(block.entries, _cells(block, baseline), strict=True):
            lines.append({"id": len(lines), "block": number, "cells": cells, **_entry(entry)})
            entries.append(entry)
    examples, packed = _examples(list(enumerate(entries)), pictures)
    return {
        "baseline": baseline,
        "sorted_by": SORTED_BY,
        "runs": len({run.folder for entry in entries for run in entry.runs}),
        "blocks": [_block(block, baseline, blocks) for block in blocks],
        "entries": lines,
        "examples": examples,
        "pictures": packed,
    }


def _block(block: Block, baseline: str, among: Sequence[Block]) -> dict:
    """One block: the number of the first block on the same images, the notes below the table, and the class names."""
    images = next(number for number, other in enumerate(among) if other.first.same_images(block.first))
    notes = [block_family(block, baseline), *block.notes]
    return {"images": images, "data": block.data, "task": block.task, "notes": notes, "classes": block.first.class_names}


def _cells(block: Block, baseline: str) -> list[dict[str, str]]:
    """The cells of the terminal's table by heading, one row per entry; accuracy and difference come first, for narrow windows."""
    table = leaderboard_table(block, baseline)
    names = list(table.columns)
    ordered = sorted(names, key=lambda name: name not in FIRST and not name.startswith("vs "))  # stable
    lines = []
    for entry, texts in zip(block.entries, table.cells(), strict=True):
        row = dict(zip(names, texts, strict=True))
        seconds = "" if np.isnan(entry.seconds) else f"{entry.seconds:.2f}"
        trust = {TRUST[name]: f"{100 * value:.1f}" for name, value in measures_of(entry).items() if name in TRUST}
        lines.append({name: row[name] for name in ordered} | {SECONDS: seconds} | trust)
    return lines


def _entry(entry: Entry) -> dict:
    """One line of the leaderboard, with the values that filters and plots need."""
    values, run = entry_values(entry), entry.runs[0]
    chosen = run.choices
    gains = None if entry.baseline is None else entry.correct.astype(int) - entry.baseline
    by_class = {
        "classes": class_accuracy(entry, entry.correct),
        "base": class_accuracy(entry, entry.baseline),
        "gains": class_accuracy(entry, gains),
    }
    own = {name: chosen.get(name, "") for name in ("task", "crop", "aggregator", "model")}
    numbers = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items() if k not in ("method", "p_value")}
    numbers = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in numbers.items()}
    return {"label": entry.label, "part": " ".join(run.task_options.values()), "shots": run.shots, **own, **numbers, **by_class}


def class_accuracy(entry: Entry, correct: np.ndarray | None) -> list[int | None]:
    """Accuracy per class in thousandths, rounded as the terminal does; None for a class without images, and without ``correct``."""
    run = entry.runs[0]
    if correct is None:
        return [None] * len(run.class_names)
    accuracies = group_accuracy(correct, run.sorted_predictions.label, len(run.class_names))
    return [None if np.isnan(value) else round(10 * float(f"{100 * value:.1f}")) for value in accuracies.tolist()]


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
                kept.setdefault(index, []).append(
                    {**example, "says": _matches(example), "picture": places.setdefault(picture, len(places))}
                )
    return kept, [_webp(picture) for picture in places]


def _matches(example: Mapping) -> list[str]:
    """What is said of each crop of an example: the two texts that get most of its mass."""
    said = []
    for number, shares in enumerate(example.get("plan") or [[]] * len(example["boxes"]), 1):
        best = sorted(zip(shares, example.get("prompts", ()), strict=False), key=lambda pair: -pair[0])[:2]
        said.append(f"crop {number}" + (": " + ", ".join(f"{100 * share:.0f} % {text}" for share, text in best) if best else ""))
    return said


def _webp(picture: str) -> str:
    """A picture of a record (base64 JPEG) as base64 WebP, which is half as large."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).save(packed, "WEBP", quality=QUALITY)
    return base64.b64encode(packed.getvalue()).decode()
