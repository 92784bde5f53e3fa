"""Adapters at 1,000 classes x 16 shots from a synthetic cached bank: the whole fit with its grid, in seconds, and the memory it takes."""

import multiprocessing
import time
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from timing import Row

from multicrop import aggregators
from multicrop.adapters.base import Examples
from multicrop.config import register_resolvers
from multicrop.prompts import TextBank
from multicrop.tasks import Scorer

CONF = Path(__file__).parent.parent / "conf"
CLASSES, SHOTS, VALIDATION, DIM, SCALE = 1000, 16, 4, 512, 100.0
SECONDS = 60.0  # what a fit of the training-free adapters should take at most
ADAPTERS = {"tip_adapter": {}, "gda": {"samples": "images"}, "ape": {}, "lp_pp": {"iterations": 10}}
ITERATIONS = 300  # of LP++ in full


def problem() -> tuple[Scorer, Examples, Examples]:
    """Global views about class centres, prompts about them, and the host CLIP: 16,000 support and 4,000 validation images."""
    generator = torch.Generator().manual_seed(0)
    unit = partial(torch.nn.functional.normalize, dim=-1)
    centres = unit(torch.randn(CLASSES, DIM, generator=generator))
    text = unit(centres + torch.randn(CLASSES, DIM, generator=generator) / DIM**0.5)
    bank = TextBank(text[:, None], torch.ones(CLASSES, 1, dtype=torch.bool), [[f"class {c}"] for c in range(CLASSES)])
    scorer = Scorer(bank, SCALE, aggregators.global_view, 1.0)

    def images(each: int) -> Examples:
        labels = torch.arange(CLASSES).repeat(each)
        views = unit(centres[labels] + 1.5 * torch.randn(len(labels), DIM, generator=generator) / DIM**0.5)[:, None]
        return Examples(views, scorer(views), labels)

    return scorer, images(SHOTS), images(VALIDATION)


def peak() -> float:
    """The most memory the process has held since its last reset, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def fit(name: str, knobs: dict) -> tuple[float, float, float, float]:
    """Processor seconds of the fit and of one scoring, MiB that the fit took, and the accuracy it reached on the validation images."""
    torch.set_num_threads(1)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", [f"adapter={name}", "task=few_shot"]).adapter
    scorer, support, validation = problem()
    adapter = instantiate(node, **knobs)(score=scorer)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak starts anew
    before, started = (peak() if clear.exists() else 0.0), time.process_time()
    adapter.fit(support, validation)
    fitted = time.process_time() - started
    with torch.no_grad():
        adapter(validation.views, validation.logits)
    once = time.process_time() - started - fitted
    return fitted, once, (peak() - before if clear.exists() else 0.0), adapter.selection["chosen"]["accuracy"]


def main() -> tuple[str, list[Row]]:
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, knobs in ADAPTERS.items():
            seconds, once, grown, right = pool.apply(fit, (name, knobs))
            full = seconds * ITERATIONS / knobs["iterations"] if name == "lp_pp" else seconds
            scaled = ", from 10 of 300 iterations" if full != seconds else ""
            said = f"{full:.1f} s of one processor{scaled}, {grown:.0f} MiB on top of its inputs"
            note = f"{said}, {seconds / max(once, 1e-9):.1f} times one scoring of 4,000 images; validation top-1 {right:.1%}"
            share = full / SECONDS
            rows.append(Row(f"{name}: fit and grid over a minute", share, share, share, mark=1.0, at_most=True, note=note))
            print(rows[-1].name, note, flush=True)
    return f"Few-shot adapters, {CLASSES} classes x {SHOTS} shots, width {DIM}, one thread", rows


if __name__ == "__main__":
    from timing import show

    show(*main())
