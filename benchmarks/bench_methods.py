"""Test-time methods, one thread, 64 views x 1,000 classes, full caches: time relative to plain scoring, memory growth, state."""

import multiprocessing
from functools import partial
from pathlib import Path

import torch
from bench_aggregators import peak
from features import clustered
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from timing import Row, in_turn, ratio

from multicrop import aggregators
from multicrop.aggregators.score import Scorer
from multicrop.config import CONF, register_resolvers
from multicrop.methods.base import Method
from multicrop.runs.injectables import inject
from multicrop.text import TextBank

# Not here: TPT and C-TPT (bench_prompt_tuning), DOTA, whose state takes 1 GB, and ECALP, whose cost depends on the images in its graph
METHODS = ("tda", "dmn", "bca", "mta", "zero", "boost", "tent", "onzeta", "oga", "tps", "dpe", "stata")
IMAGES, CLASSES, CROPS, DESCRIPTIONS, STREAM = 32, 1000, 63, 3, 10_000
SCALE = 100.0


def scorer(text: TextBank) -> Scorer:
    """The mean of all similarities of crops and descriptions: the simplest scoring that reads every view."""
    plain = partial(aggregators.mean_similarity, view_set="crops", text_set="descriptions")
    return Scorer(text, SCALE, plain, 1.0)


def full(name: str, text: TextBank) -> Method:
    """The method with the knobs of conf/method and full caches; the time per image does not depend on their content."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"method={name}", "task=tta"])
    method = inject(instantiate(cfg.method), text=text, logit_scale=SCALE, score=scorer(text))
    for buffer, value in method.named_buffers():
        if "entrop" in buffer:
            value.fill_(1.0)
    return method


def growth(name: str) -> float:
    """Growth of the process in MiB while one method processes a batch of the stream (Linux)."""
    views, text = clustered(IMAGES, CLASSES, CROPS, DESCRIPTIONS)
    method, logits = full(name, text), scorer(text)(views)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak()
    with torch.inference_mode():
        method(views, logits)
    return peak() - before


def methods() -> list[Row]:
    """Each method after plain scoring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    grown = dict.fromkeys(METHODS, float("nan"))
    if Path("/proc/self/clear_refs").exists():
        with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
            grown = dict(zip(METHODS, pool.map(growth, METHODS, chunksize=1), strict=True))
    views, text = clustered(IMAGES, CLASSES, CROPS, DESCRIPTIONS)
    score = scorer(text)
    logits, made = score(views), {name: full(name, text) for name in METHODS}
    ways = {name: partial(method, views, logits) for name, method in made.items()}
    with torch.inference_mode():
        times = in_turn({"plain": lambda: score(views)} | ways, rounds=3)
    rows = []
    for name, method in made.items():
        each = times[name].median / IMAGES
        note = (
            f"{1000 * each:.2f} ms per image, {STREAM * each:.0f} s for {STREAM:,}; plain {1000 * times['plain'].median / IMAGES:.2f} ms; "
        )
        note += f"{IMAGES} images: memory growth {grown[name]:.0f} MiB; state {method.state_bytes / 2**20:.1f} MiB"
        rows.append(ratio(f"{name} / plain scoring", times[name], times["plain"], note=note))
    torch.set_num_threads(threads)
    return rows


TITLE = f"one thread, {CROPS + 1} views, {CLASSES} classes, full caches"
PARTS = {"methods": methods}
