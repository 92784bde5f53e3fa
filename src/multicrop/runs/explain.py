"""`task=explain image=PATH`: classify images among a data set's classes and show the crops, the texts and the words that decided."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from multicrop.crops.views import image_views
from multicrop.data.images import ImageError, open_image, shared_pixels
from multicrop.data.sources.folder import SUFFIXES
from multicrop.files import make_folder, write_text
from multicrop.model import MultiCropCLIP
from multicrop.runs.session import Session
from multicrop.runs.settings import Settings
from multicrop.runs.sweep_cache import SweepCache
from multicrop.show.explain.explanation import Explanation, explain
from multicrop.show.explain.table import facts, write_explanation
from multicrop.show.terminal import console

log = logging.getLogger(__name__)
USAGE = "pass image=PATH, a file or a folder, or several as image=[a.jpg,b.png]"


def run(settings: Settings, cache: SweepCache | None = None) -> float:
    """Explain each image: a table, NAME.png and NAME.html in the run's folder; returns the mean probability of the predicted classes."""
    paths, named = image_files(settings["image"])
    output = settings.output
    make_folder(output, "paths.output")
    session = Session(settings, cache)
    explained: list[Explanation] = []
    for path in paths:
        try:
            image = open_image(path)
        except ImageError as error:
            if path in named or settings["on_unreadable"] == "raise":
                raise
            log.warning("%s; skipped", error)
            continue
        item = explain_image(session, path.name, image)
        write_explanation(item, output / f"{len(explained):03d}-{path.stem}", console)
        explained.append(item)
    if not explained:
        raise ValueError(f"none of the {len(paths)} images can be read; {USAGE}")
    write_text(output / "explanations.json", json.dumps([facts(item) for item in explained], indent=1))
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
def explain_image(
    session: Session,
    name: str,
    image: Image.Image,
    *,
    logits: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 1.0,
) -> Explanation:
    """Encode one RGB image and explain its class; its crops are keyed by the name.

    Args:
        session: The parts of the run.
        name: Id of the image.
        image: The image.
        logits: Maps views (1, views, dim) to the logits (1, classes) that predict; None: the scorer's.
        temperature: Divides the logits before the softmax.
    """
    encoder = session.encoder
    pixels, boxes = image_views(shared_pixels(image), name, session.sampler, encoder.spec, session.settings["crop_seed"])
    views = MultiCropCLIP(encoder, session.sampler).features(pixels, boxes[None])[0]
    predicting = None if logits is None else logits(views[None])[0]
    how = {"name": name, "open_image": lambda: image, "logits": predicting, "temperature": temperature}
    return explain(session.scorer, views, boxes, session.dataset.class_names, **how)
