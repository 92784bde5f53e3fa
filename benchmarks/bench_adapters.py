"""Adapters at 1,000 classes x 16 shots on synthetic features: time of the fit with its grid search, and memory."""

import multiprocessing
import time
from functools import partial
from pathlib import Path

import lightning.pytorch  # noqa: F401  here, so that the first fit does not pay for the import
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from timing import Row, native_bf16

from multicrop import aggregators
from multicrop.adapters.base import Examples
from multicrop.adapters.selection import accuracy
from multicrop.aggregators.score import Scorer
from multicrop.config import CONF, register_resolvers
from multicrop.text import TextBank

CLASSES, SHOTS, VALIDATION, DIM, SCALE = 1000, 16, 4, 512, 100.0
MEANINGS = 32  # directions in which classes differ
SECONDS = 60.0  # time limit for a fit of the training-free adapters and of LP++
WHOLE = ("tip_adapter", "gda adapter.samples=images", "ape", "clap adapter.samples=images", "timo adapter.samples=images")
# An iteration of LP++ and an epoch of TaskRes are two products of images x width x classes (33 GFLOP); the fits have 300 and 100.
# No form with fewer products has the same result: all entries of the weights change in a step, and there are more images than channels.
STEPS = {  # long fits: the knob, and the number of steps from which the total time is extrapolated
    "lp_pp": ("iterations", 5),
    "lp_pp adapter.products=bf16": ("iterations", 5),
    "taskres_100": ("epochs", 1),
    "rla": ("steps", 2),
}


def problem() -> tuple[Scorer, Examples, Examples]:
    """The scorer of CLIP's global view, 16,000 support and 4,000 validation images.

    Classes are points in a low-dimensional space; prompts and images are noisy copies of them, each modality in its own cone as in CLIP.
    Zero-shot accuracy is about two thirds.
    """
    generator = torch.Generator().manual_seed(0)
    draw, unit = partial(torch.randn, generator=generator), partial(torch.nn.functional.normalize, dim=-1)
    basis = torch.linalg.qr(draw(DIM, 2 + MEANINGS))[0].T
    centres = draw(CLASSES, MEANINGS)

    def features(meanings: torch.Tensor, cone: int) -> torch.Tensor:
        return unit(basis[cone] + 0.6 * unit(meanings) @ basis[2:] + 0.3 * draw(len(meanings), DIM) / DIM**0.5)[:, None]

    text = features(centres + 0.5 * draw(CLASSES, MEANINGS), 0)
    bank = TextBank(text, torch.ones(CLASSES, 1, dtype=torch.bool), [[f"class {c}"] for c in range(CLASSES)])
    scorer = Scorer(bank, SCALE, aggregators.global_view, 1.0)

    def images(each: int) -> Examples:
        labels = torch.arange(CLASSES).repeat(each)
        views = features(centres[labels] + 1.05 * draw(len(labels), MEANINGS), 1)
        return Examples(views, scorer(views), labels)

    return scorer, images(SHOTS), images(VALIDATION)


def peak() -> float:
    """Peak memory of the process since the last reset, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def fit(choice: str) -> tuple[float, str]:
    """Seconds of the fit, and a note: memory on top of its inputs, and validation accuracy."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", ["task=few_shot", *f"adapter={choice}".split()]).adapter
    scorer, support, validation = problem()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # resets the peak
    before = peak() if clear.exists() else 0.0

    def timed(**knobs: object) -> tuple[float, float]:
        started, adapter = time.perf_counter(), instantiate(node, **knobs)(score=scorer)
        adapter.fit(support, validation)
        return time.perf_counter() - started, adapter.selection["chosen"]["accuracy"]

    knob, few = STEPS.get(choice, (None, 0))
    seconds, right = timed(**({knob: few} if knob else {}))
    said = f"{peak() - before if clear.exists() else 0.0:.0f} MiB on top of its inputs, validation top-1 {right:.1%}"
    if knob:
        longer, right = timed(**{knob: 2 * few})
        seconds += (longer - seconds) * (node[knob] / few - 1)
        said += f" after {few} and {right:.1%} after {2 * few} {knob}, time extrapolated to {node[knob]}"
    return seconds, f"{said} (zero-shot {accuracy(validation.logits, validation.labels):.1%})"


def measured(choice: str) -> list[Row]:
    """The fit in a process of its own; none where the processor has no bfloat16 for a choice that computes in it."""
    if "bf16" in choice and not native_bf16():
        return []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        seconds, said = pool.apply(fit, (choice,))
    share, mark = seconds / SECONDS, None if choice in ("taskres_100", "rla") else 1.0
    return [Row(f"{choice}: fit and search / one minute", share, share, share, mark=mark, at_most=True, note=f"{seconds:.1f} s, {said}")]


TITLE = f"{CLASSES} classes x {SHOTS} shots, width {DIM}, all cores"
PARTS = {choice.split()[0] + ("_bf16" if "bf16" in choice else ""): partial(measured, choice) for choice in (*WHOLE, *STEPS)}
LONG = tuple(part for part in PARTS if part not in ("tip_adapter", "gda", "ape"))
