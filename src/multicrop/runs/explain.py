"""`task=explain image=PATH`: classify images among a data set's classes and show the crops, the texts and the words that decided."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table

from multicrop.crops.views import image_views
from multicrop.data.images import ImageError, open_image, shared_pixels
from multicrop.data.sources.folder import SUFFIXES
from multicrop.files import make_folder
from multicrop.model import MultiCropCLIP
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.show.explain.evidence import Evidence, evidence
from multicrop.show.explain.page import write_page
from multicrop.show.explain.picture import MOST_WORDS, draw_evidence, headline, words_title
from multicrop.show.terminal import console

log = logging.getLogger(__name__)
USAGE = "pass image=PATH, a file or a folder, or several as image=[a.jpg,b.png]"


def run(settings: Settings, cache: SweepCache | None = None) -> float:
    """Explain each image: a table, NAME.png and NAME.html in the run's folder; returns the mean probability of the predicted classes."""
    paths, named = image_files(settings["image"])
    output = settings.output
    make_folder(output, "paths.output")
    session = Session(settings, cache)
    explained: list[Evidence] = []
    for path in paths:
        try:
            image = open_image(path)
        except ImageError as error:
            if path in named or settings["on_unreadable"] == "raise":
                raise
            log.warning("%s; skipped", error)
            continue
        item = explain(session, path.name, image)
        _write(item, output / f"{len(explained):03d}-{path.stem}")
        explained.append(item)
    if not explained:
        raise ValueError(f"none of the {len(paths)} images can be read; {USAGE}")
    (output / "explanations.json").write_text(json.dumps([_facts(item) for item in explained], indent=1), encoding="utf-8")
    return sum(item.probability for item in explained) / len(explained)


def image_files(image: str | Sequence[str] | None) -> tuple[list[Path], set[Path]]:
    """The files to explain, those of folders sorted, and which of them were named one by one.

    Raises ValueError when there is none, a path does not exist, or a folder holds no image.
    """
    given = [image] if isinstance(image, str | int | float) else list(image or [])
    if not given:
        raise ValueError(f"task=explain has no image to explain; {USAGE}")
    files: list[Path] = []
    named: set[Path] = set()
    for path in (Path(str(entry)).expanduser() for entry in given):
        if path.is_dir():
            found = sorted(child for child in path.rglob("*") if child.suffix.lower() in SUFFIXES and child.is_file())
            if not found:
                raise ValueError(f"the folder {path} holds no image ({', '.join(sorted(SUFFIXES))}); {USAGE}")
            files += found
        elif path.is_file():
            files.append(path)
            named.add(path)
        else:
            raise ValueError(f"the image {path} does not exist; {USAGE}")
    return files, named


@torch.inference_mode()
def explain(session: Session, name: str, image: Image.Image) -> Evidence:
    """Encode one RGB image and say why it gets its class; its crops are keyed by the name."""
    encoder = session.encoder
    pixels, boxes = image_views(shared_pixels(image), name, session.sampler, encoder.spec, session.settings["crop_seed"])
    views = MultiCropCLIP(encoder, session.sampler).features(pixels, boxes[None])
    knobs = session.settings.part("aggregator").without("_target_", "_partial_").values
    return evidence(name, image, views, boxes, session.scorer, session.dataset.class_names, knobs)


def _write(item: Evidence, stem: Path) -> None:
    """The picture, the page, and the table of words in the terminal."""
    picture, html = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.html")
    draw_evidence(item, picture)
    write_page(item, html)
    console.print(f"{headline(item)}\nrunner-up: {item.runner_up.name}\n{words_title(item)}", markup=False, highlight=False)
    console.print(words_table(item))
    console.print(f"picture: {picture}", soft_wrap=True, markup=False)
    console.print(f"page: {html}", soft_wrap=True, markup=False)


def words_table(item: Evidence) -> Table:
    """The texts that weigh most between the predicted class and the runner-up."""
    table = Table()
    table.add_column("text", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("logits", justify="right")
    for word in item.words[:MOST_WORDS]:
        table.add_row(escape(word.text), escape(word.side), f"{word.contribution:+.2f}")
    if (rest := item.words[MOST_WORDS:]) and item.is_plan:
        table.add_row(f"{len(rest)} more", "", f"{sum(word.contribution for word in rest):+.2f}")
    return table


def _facts(item: Evidence) -> dict[str, object]:
    return {
        "image": item.name,
        "prediction": item.predicted.name,
        "probability": item.probability,
        "runner_up": item.runner_up.name,
        "margin": item.margin,
        "global_view": item.global_name,
        "transport_plan": item.is_plan,
        "words": [asdict(word) for word in item.words],
    }
