"""Test-time methods: time on 64 views x 1,000 classes against plain scoring of the same images, and the state after 10,000 images."""

from functools import partial

import torch
from features import clustered
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from timing import Row, in_turn, ratio
from torch.nn.functional import normalize

from multicrop import aggregators
from multicrop.config import PACKAGE, register_resolvers
from multicrop.methods.base import Method
from multicrop.prompts import TextBank
from multicrop.session import given
from multicrop.tasks import Scorer

ONLINE, EPISODIC = ("tda", "dmn", "bca", "boost", "tent"), ("mta", "zero")  # TPT and C-TPT: bench_prompt_tuning
IMAGES, CLASSES, CROPS, DESCRIPTIONS = 4, 1000, 63, 3
STREAM, STREAM_CLASSES, STREAM_DIM, AT_ONCE = 10_000, 10, 16, 100
SCALE = 100.0


def scorer(text: TextBank) -> Scorer:
    """All similarities of crops and descriptions averaged: the plainest scoring that reads every view."""
    plain = partial(aggregators.mean_similarity, view_set="crops", text_set="descriptions")
    return Scorer(text, SCALE, plain, 1.0)


def method(name: str, text: TextBank) -> Method:
    """The method with the knobs of conf/method."""
    register_resolvers()
    with initialize_config_dir(str(PACKAGE.parent.parent / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=[f"method={name}", "task=tta"])
    return given(instantiate(cfg.method), text=text, logit_scale=SCALE, score=scorer(text))


def timed() -> list[Row]:
    """Each method's own time over that of plain scoring; the stream's first images fill the state before the clock runs."""
    views, text = clustered(IMAGES, CLASSES, CROPS, DESCRIPTIONS)
    score = scorer(text)
    logits = score(views)
    ways = {name: partial(method(name, text), views, logits) for name in (*ONLINE, *EPISODIC)}
    with torch.inference_mode():
        times = in_turn({"plain": lambda: score(views)} | ways, rounds=3)
    note = lambda name: f"{1000 * times[name].median / IMAGES:.2f} ms an image; plain {1000 * times['plain'].median / IMAGES:.2f}"  # noqa: E731
    return [ratio(f"{name} / plain scoring", times[name], times["plain"], note=note(name)) for name in ways]


def state_after_a_stream(name: str, text: TextBank, generator: torch.Generator) -> Row:
    """The bytes of the state after 10,000 images over those before the first."""
    adapted = method(name, text)
    before = adapted.state_bytes
    with torch.inference_mode():
        for _ in range(STREAM // AT_ONCE):
            views = normalize(text.label[torch.randint(STREAM_CLASSES, (AT_ONCE,), generator=generator)][:, None], dim=-1)
            views = normalize(views + 0.3 * torch.randn(AT_ONCE, 2, STREAM_DIM, generator=generator), dim=-1)
            adapted(views, 0.2 * SCALE * views.mean(1) @ text.label.T)
    grown = adapted.state_bytes / before
    note = f"{before:,} bytes for {STREAM_CLASSES} classes of {STREAM_DIM} numbers"
    return Row(f"{name}: state after {STREAM:,} images / before", grown, grown, grown, mark=1.0, at_most=True, note=note)


def main() -> tuple[str, list[Row]]:
    """Measure."""
    generator = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(STREAM_CLASSES, 2, STREAM_DIM, generator=generator), dim=-1)
    text = TextBank(features, torch.ones(STREAM_CLASSES, 2, dtype=torch.bool), [["label", "text"]] * STREAM_CLASSES)
    rows = timed() + [state_after_a_stream(name, text, generator) for name in ONLINE if name != "tent"]
    return f"Test-time methods: {CROPS + 1} views, {CLASSES} classes, {IMAGES} images", rows
