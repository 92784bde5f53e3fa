"""`multicrop predict`: bare forward pass / predictions from JPEG to a file, with the crop and the text that decided."""

import tempfile
from functools import partial
from pathlib import Path

import torch
from bench_bank import CROPS, DEVICE, bare, best_part, labelled, photographs, tiny, vit_b32
from timing import Row, in_turn, ratio

from multicrop.encoder import Encoder
from multicrop.runs.predict import predict
from multicrop.runs.predictor import Predictor, classifier_settings, with_classes
from multicrop.runs.session import Session

CLASSES = {f"class {number}": ["long ears", "a short tail", "dark fur", "round eyes"] for number in range(40)}


def measured(name: str, encoder: Encoder, count: int) -> list[Row]:
    """Bare forward pass / predictions of as many images as files, for the same number of views."""
    settings = classifier_settings(None, model="tiny", crop=f"random_k{CROPS}", aggregator="dnd", overrides=[])
    predictor = Predictor(with_classes(Session(settings), CLASSES).with_encoder(encoder.to(DEVICE)))
    files, side = photographs(count), encoder.spec.side
    pixels = torch.randint(0, 255, (count * (CROPS + 1), 3, side, side), dtype=torch.uint8, device=DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "predictions.parquet")
        ways = {
            "bare": partial(bare, encoder, pixels, best_part(encoder, pixels)),
            "predict": lambda: predict(predictor, labelled(files, "bench"), output, progress=False),
        }
        times = in_turn(ways, rounds=3)
    note = f"{count / times['predict'].median:.1f} images per second, {len(CLASSES)} classes"
    return [ratio(f"{name}: bare forward / predict", times["bare"], times["predict"], mark=0.9, note=note)]


TITLE = f"K = {CROPS}, aggregator=dnd, JPEG of 500 x 375 pixels"
PARTS = {
    "vit_b32": lambda: measured("ViT-B/32", vit_b32("fp32"), 16),
    "embedded": lambda: measured("embedded", tiny("fp32"), 96),
}
LONG = ("vit_b32",)
