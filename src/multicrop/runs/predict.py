"""Predictions for images without labels, written in parts, so that a killed run continues where it was."""

import csv
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from multicrop.data.base import LabelledImages
from multicrop.data.images import ImageError
from multicrop.features import EncodedImages
from multicrop.files import DamagedFileError, atomic, content_hash, naming, read_sealed, set_aside, write_sealed
from multicrop.runs.predictor import Predictor
from multicrop.runs.side_by_side import in_order
from multicrop.runs.unreadable import reason
from multicrop.show.explain.carriers import carriers
from multicrop.show.explain.explanation import Explanation, explain

log = logging.getLogger(__name__)
FLOATS = ("probability", "runner_up_probability", "left", "top", "right", "bottom", "margin")
PART = 256  # images between two writes
KNOB = "-o"


@dataclass(frozen=True)
class Prediction:
    """One row of the output; all but `image` and `error` are empty for an image that cannot be read.

    Args:
        image: Id of the image.
        prediction: Name of the predicted class.
        probability: Its probability: softmax of logits / temperature.
        runner_up: Name of the second class; empty where there is one class.
        runner_up_probability: Its probability.
        crop: Number of the view that decided, as in explanations.png; 0 is the whole image.
        left: Left edge of this view, in pixels.
        top: Top edge.
        right: Right edge.
        bottom: Bottom edge.
        text: The text of the predicted class that adds most to the margin over the runner-up.
        margin: What this text adds to the margin, in logits.
        error: Why the image cannot be read.
    """

    image: str
    prediction: str | None = None
    probability: float | None = None
    runner_up: str | None = None
    runner_up_probability: float | None = None
    crop: int | None = None
    left: float | None = None
    top: float | None = None
    right: float | None = None
    bottom: float | None = None
    text: str | None = None
    margin: float | None = None
    error: str | None = None


def predict(predictor: Predictor, images: LabelledImages, output: Path, *, progress: bool = True) -> list[Prediction]:
    """Classify images and write one row per image.

    Args:
        predictor: What classifies them.
        images: The images; their labels are not read.
        output: The file to write: .parquet, .csv or .jsonl. Until it is whole, parts lie in a folder beside it, from which the same call
            continues.
        progress: Whether to show a progress bar.

    Returns:
        The rows.

    Raises:
        ValueError: If the name of the file has another ending.
    """
    write = writer_of(output)
    parts = output.with_name(f"{output.name}.parts")
    key = predictor.identity
    with naming(parts, KNOB):
        parts.mkdir(parents=True, exist_ok=True)
    rows: list[Prediction] = []
    with _bar(progress) as bar:
        task = bar.add_task("Predicting", total=len(images))
        for first in range(0, len(images), PART):
            chosen = images.subset(range(first, min(first + PART, len(images))))
            path, meaning = parts / f"{first:09d}.sealed", content_hash(key, chosen.fingerprint)
            found = _read(path, meaning)
            if found is None:
                found = list(_predicted(predictor, chosen, partial(bar.advance, task)))
                with naming(path, KNOB):
                    write_sealed(path, json.dumps([asdict(row) for row in found]).encode(), meaning)
            else:
                bar.advance(task, len(found))
            rows += found
    with naming(output, KNOB), atomic(output) as whole:
        write(rows, whole)
    shutil.rmtree(parts, ignore_errors=True)
    return rows


def writer_of(output: Path) -> Callable[[Sequence[Prediction], Path], None]:
    """The function that writes rows in the format of a file's name; raises ValueError where there is none."""
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    if output.suffix not in writers:
        raise ValueError(f"{output} ends with {output.suffix or 'nothing'}; name the output *{', *'.join(writers)}")
    return writers[output.suffix]


def _predicted(predictor: Predictor, images: LabelledImages, advance: Callable[[int], None]) -> Iterator[Prediction]:
    """The rows of some images, whose groups are predicted side by side where that is possible."""
    size = predictor.group_size
    parts = [images.subset(range(first, min(first + size, len(images)))) for first in range(0, len(images), size)]
    threads = predictor.threads(len(parts))
    rows = partial(_rows, predictor)
    for found in rows(images) if threads == 1 else chain.from_iterable(in_order(lambda part: list(rows(part)), parts, threads)):
        yield from found
        advance(len(found))


def _rows(predictor: Predictor, images: LabelledImages) -> Iterator[list[Prediction]]:
    """The rows of each group of images."""
    for group in predictor.groups(images):
        logits = predictor.logits(group.views)
        yield [
            _row(predictor, images.ids[int(index)], group, row, logits[row])
            if group.readable[row]
            else Prediction(images.ids[int(index)], error=reason(images, index) or "could not be read")
            for row, index in enumerate(group.index.tolist())
        ]


def _row(predictor: Predictor, name: str, group: EncodedImages, row: int, logits: Float[Tensor, " classes"]) -> Prediction:
    scorer, names = predictor.scorer, predictor.class_names
    item = explain(scorer, group.views[row], group.boxes[row], names, name=name, open_image=_not_opened, logits=logits)
    best = (logits.double() / predictor.temperature).softmax(0).topk(min(2, len(names)))
    probabilities, (text, margin) = best.values.tolist(), deciding_text(item)
    view = carriers(item, item.predicted, text)[0].view
    left, top, right, bottom = item.boxes[view].tolist()
    return Prediction(
        name,
        item.predicted.name,
        probabilities[0],
        item.sides[1].name if len(item.sides) > 1 else None,
        probabilities[1] if len(probabilities) > 1 else None,
        item.first_crop + view,
        left,
        top,
        right,
        bottom,
        item.predicted.prompts[text],
        margin,
    )


def deciding_text(item: Explanation) -> tuple[int, float | None]:
    """The text of the predicted class that adds most to the margin, and how much; without a second class, the text with most mass."""
    prompts = item.predicted.prompts
    added = {word.text: word.contribution for word in item.words if word.side == item.predicted.name}
    if not added:
        return int((item.predicted.mass * item.predicted.scores).sum(0).argmax()), None
    text = max(range(len(prompts)), key=lambda number: added.get(prompts[number], float("-inf")))
    return text, added[prompts[text]]


def _not_opened() -> Image.Image:
    raise ImageError("an image of a prediction is not opened again")


def _read(path: Path, meaning: str) -> list[Prediction] | None:
    """The rows of a part that an earlier call wrote for the same classifier and images; None where there is none."""
    try:
        return [Prediction(**row) for row in json.loads(read_sealed(path, meaning))]
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        set_aside(path, f"is not used ({error}), its images are predicted again", KNOB)
        return None


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not shown)


def _write_parquet(rows: Sequence[Prediction], path: Path) -> None:
    numbers = {"crop": pa.int32()} | dict.fromkeys(FLOATS, pa.float64())
    schema = pa.schema([(field.name, numbers.get(field.name, pa.string())) for field in fields(Prediction)])
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), path)


def _write_csv(rows: Sequence[Prediction], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(Prediction)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def _write_jsonl(rows: Sequence[Prediction], path: Path) -> None:
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
