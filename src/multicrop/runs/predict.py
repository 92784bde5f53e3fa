"""Predictions for images without labels, written in parts, so that a killed run continues where it was."""

import csv
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
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
from multicrop.files import atomic, naming
from multicrop.runs.predicted_parts import KNOB, PredictedParts, Prediction
from multicrop.runs.predictor import Predictor
from multicrop.runs.side_by_side import in_order
from multicrop.runs.unreadable import reason
from multicrop.show.explain.carriers import carriers
from multicrop.show.explain.explanation import Explanation, explain

log = logging.getLogger(__name__)
FLOATS = ("probability", "runner_up_probability", "left", "top", "right", "bottom", "margin")
Elsewhere = Callable[[PredictedParts], None]


def predict(
    predictor: Predictor, images: LabelledImages, output: Path, *, progress: bool = True, elsewhere: Elsewhere | None = None
) -> list[Prediction]:
    """Classify images and write one row per image.

    Args:
        predictor: What classifies them.
        images: The images; their labels are not read.
        output: The file to write: .parquet, .csv or .jsonl. Until it is whole, parts lie in a folder beside it, from which the same call
            continues.
        progress: Whether to show a progress bar.
        elsewhere: Predicts missing parts in other processes; None: this process does.

    Returns:
        The rows.

    Raises:
        ValueError: If the name of the file has another ending.
    """
    write = writer_of(output)
    parts = PredictedParts(output.with_name(f"{output.name}.parts").absolute(), predictor.identity, images)
    with naming(parts.path, KNOB):
        parts.path.mkdir(parents=True, exist_ok=True)
    if elsewhere is not None:
        elsewhere(parts)
    rows: list[Prediction] = []
    with _bar(progress and elsewhere is None) as bar:
        task = bar.add_task("Predicting", total=len(images))
        for index in range(parts.count):
            if (found := parts.read(index)) is None:
                found = list(predicted(predictor, parts.images_of(index), partial(bar.advance, task)))
                parts.write(index, found)
            else:
                bar.advance(task, len(found))
            rows += found
    with naming(output, KNOB), atomic(output) as whole:
        write(rows, whole)
    shutil.rmtree(parts.path, ignore_errors=True)
    return rows


def writer_of(output: Path) -> Callable[[Sequence[Prediction], Path], None]:
    """The function that writes rows in the format of a file's name; raises ValueError where there is none."""
    writers = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}
    if output.suffix not in writers:
        raise ValueError(f"{output} ends with {output.suffix or 'nothing'}; name the output *{', *'.join(writers)}")
    return writers[output.suffix]


def predicted(predictor: Predictor, images: LabelledImages, advance: Callable[[int], object] = int) -> Iterator[Prediction]:
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
