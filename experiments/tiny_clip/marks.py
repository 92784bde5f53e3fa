"""Measure the embedded model (or any checkpoint) on the embedded data sets: the rows of experiments/tiny_clip/README.md.

Usage: python experiments/tiny_clip/marks.py [--short] [OVERRIDE ...], for instance model=local model.path=FOLDER. Prints a markdown table;
--short measures scenes with 16 crops and all 344 classes alone.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from multicrop.compare.tables import interval

ROOT = Path(__file__).parents[2]
ROWS = ("global", "crops_mean", "aggregated")
SHORT, OVERRIDES = "--short" in sys.argv, [word for word in sys.argv[1:] if word != "--short"]
GROUPS = ("faces", "animals", "food")
VENDORS = ("fluent-3d", "noto-v1", "streamline")  # near, middle, far


def measure(output: str, *overrides: str) -> dict:
    """The metrics of one zero-shot run."""
    folder = Path(tempfile.mkdtemp(dir=output))
    command = [sys.executable, "run.py", *overrides, "logger=none", "trainer.progress=false", "pictures=0", f"paths.output={folder}"]
    subprocess.run([*command, *OVERRIDES], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads(next(folder.rglob("metrics.json")).read_text(encoding="utf-8"))


def line(name: str, runs: list[dict]) -> None:
    """One row: the accuracies pooled over runs, and the difference of the last to the first where there is one run."""
    images = sum(run["images"] for run in runs)
    pooled = [100 * sum(run["rows"][row]["accuracy"] * run["images"] for run in runs) / images for row in ROWS]
    final = runs[0]["rows"]["aggregated"]
    gain = interval(final) if len(runs) == 1 else ""
    print(f"| {name} | {images} | {' | '.join(f'{value:.1f}' for value in pooled)} | {gain} |", flush=True)


def main() -> None:
    """All rows, on the held-out vendors."""
    print("| | images | global view | crops averaged | D&D | D&D against global |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as output:
        for vendor in VENDORS:
            for crops in (16,) if SHORT else (16, 48):
                run = measure(output, "dataset=scenes", f"dataset.vendor={vendor}", "crop=random", f"crop.n_crops={crops}")
                line(f"scenes, {vendor}, {crops} crops", [run])
        for vendor in VENDORS:
            line(f"all 344 classes, {vendor}", [measure(output, "dataset=emoji", f"dataset.vendors=[{vendor}]")])
        if not SHORT:
            details(output)


def details(output: str) -> None:
    """Single drawings by group, and the unseen concepts."""
    singles = {
        (group, vendor): measure(output, "dataset=emoji", f"dataset.group={group}", f"dataset.vendors=[{vendor}]")
        for group in GROUPS
        for vendor in VENDORS
    }
    for (group, vendor), run in singles.items():
        line(f"single {group}, {vendor}", [run])
    line("single objects, pooled over groups and vendors", list(singles.values()))
    for vendor in VENDORS:
        line(f"28 unseen concepts, {vendor}", [measure(output, "dataset=emoji", "dataset.unseen=true", f"dataset.vendors=[{vendor}]")])


if __name__ == "__main__":
    main()
