"""Inputs changed in place: a repeated sweep runs again what the change touches, skips the rest, and gives what a fresh sweep gives."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from storm.children import start
from storm.inputs import CLASSES, SPLITS, SUPPORT
from storm.runs import DESCRIPTIONS, FIT, SHARD_IMAGES, SWEEPS, Plan, sweep_of
from storm.world import WRONG, Outcome, World, judged

POLICY = ("crop=global", "crop._target_=storm_policy.left")
JOBS = {
    "descriptions": ("aggregator=max", *DESCRIPTIONS),
    "extended": ("aggregator=max", *DESCRIPTIONS, "prompt.extend={}/more.json"),
    "few-shot": ("aggregator=mean_feature", *DESCRIPTIONS, *FIT, "task.few_shot_file={}/split.json"),
    "own policy": ("aggregator=max", *DESCRIPTIONS, *POLICY),
    "validation": ("aggregator=max", *DESCRIPTIONS, "split=validation"),
}
SCORED = {"test": frozenset(JOBS) - {"validation"}, "val": frozenset(("validation",)), "train": frozenset()}
EVERY = frozenset(JOBS)
Change = Callable[[Path, random.Random], frozenset[str]]  # edits the inputs; the jobs that it touches


def in_place(path: Path, content: bytes) -> None:
    """Write other content of the same size, and keep the time of modification."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _drawn(rng: random.Random) -> tuple[str, int, int]:
    """A split, a class and a number of an image."""
    split = rng.choice(list(SPLITS))
    return split, rng.randrange(len(CLASSES)), rng.randrange(SPLITS[split])


def _readers(split: str, number: int) -> frozenset[str]:
    """The jobs that read an image: those that score its split, and the few-shot one where the file of the split names it."""
    return SCORED[split] | ({"few-shot"} if number < SUPPORT.get(split, 0) else frozenset())


def image(folder: Path, rng: random.Random) -> frozenset[str]:
    """Other pixels, with size and time kept."""
    split, label, number = _drawn(rng)
    path = folder / f"{split}-{label}-{number}.bmp"
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content)):
        content[place] ^= 255
    in_place(path, bytes(content))
    return _readers(split, number)


def label(folder: Path, rng: random.Random) -> frozenset[str]:
    """Another label in a table, with size and time kept."""
    split, old, number = _drawn(rng)
    path, row = folder / f"{split}.csv", f"{split}-{old}-{number}.bmp,"
    in_place(path, path.read_bytes().replace(f"{row}{old}".encode(), f"{row}{(old + 1) % len(CLASSES)}".encode()))
    return _readers(split, number)


def class_name(folder: Path, rng: random.Random) -> frozenset[str]:
    """Two class names exchanged, with size and time kept."""
    one, two = rng.sample(range(len(CLASSES)), 2)
    names = list(CLASSES)
    names[one], names[two] = names[two], names[one]
    in_place(folder / "names.json", json.dumps(names).encode())
    return EVERY


def _phrase(path: Path, rng: random.Random) -> None:
    texts = json.loads(path.read_text())
    name = rng.choice(CLASSES)
    texts[name] = [texts[name][0][::-1]]
    in_place(path, json.dumps(texts).encode())


def descriptions(folder: Path, rng: random.Random) -> frozenset[str]:
    """Another phrase in the file of descriptions."""
    _phrase(folder / "texts.json", rng)
    return EVERY


def extension(folder: Path, rng: random.Random) -> frozenset[str]:
    """Another phrase in the file that extends the descriptions."""
    _phrase(folder / "more.json", rng)
    return frozenset(("extended",))


def weights(folder: Path, rng: random.Random) -> frozenset[str]:
    """Other weights of the model."""
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    name = rng.choice(sorted(name for name in tensors if name.endswith("mlp.fc1.weight")))
    tensors = {key: value.clone() for key, value in tensors.items()}
    tensors[name].view(-1)[rng.randrange(tensors[name].numel())] += 1.0
    save_file(tensors, path.with_name("other"), metadata={"format": "pt"})
    in_place(path, path.with_name("other").read_bytes())
    path.with_name("other").unlink()
    return EVERY


def few_shot_file(folder: Path, rng: random.Random) -> frozenset[str]:
    """Another image in the file of the few-shot split."""
    path, number = folder / "split.json", rng.randrange(len(CLASSES))
    in_place(path, path.read_bytes().replace(f"train-{number}-0".encode(), f"train-{number}-2".encode()))
    return frozenset(("few-shot",))


def policy(folder: Path, rng: random.Random) -> frozenset[str]:
    """Another crop policy outside the package."""
    path = folder / "plugin" / "storm_policy.py"
    in_place(path, path.read_bytes().replace(b"[[0.0, 0.0", b"[[1.0, 0.0"))
    return frozenset(("own policy",))


def helper(folder: Path, rng: random.Random) -> frozenset[str]:
    """Another constant in a module that the crop policy imports."""
    path = folder / "plugin" / "storm_helper.py"
    in_place(path, path.read_bytes().replace(b"0.5", f"0.{rng.randrange(6, 9)}".encode()))
    return frozenset(("own policy",))


def touched(folder: Path, rng: random.Random) -> frozenset[str]:
    """Copied data: other times and inodes, the same content."""
    for path in [*folder.glob("*.bmp"), *folder.glob("*.csv")]:
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").replace(path)
    return frozenset()


CHANGES: dict[str, Change] = {
    "image": image,
    "label": label,
    "class names": class_name,
    "descriptions": descriptions,
    "prompt.extend": extension,
    "weights": weights,
    "few-shot file": few_shot_file,
    "crop policy": policy,
    "module of the crop policy": helper,
    "copied data": touched,
}


def fault(world: World, rng: random.Random) -> Outcome:
    """Change an input, repeat the sweep, and compare with a fresh one; also which jobs ran."""
    state, plan = "finished changes", Plan(list(JOBS.values()), rng.choice(("sweep-2", "sweep-3")), (SHARD_IMAGES,))
    name = rng.choice(list(CHANGES))
    kept = {path: path.read_bytes() for path in sorted(world.inputs.rglob("*")) if path.is_file()}
    with world.place(state) as place, world.place() as fresh:
        try:
            expected = CHANGES[name](world.inputs, rng)
            again, new = (start(sweep_of(at, plan, shared=False), at.scratch).wait() for at in (place, fresh))
        finally:
            for path, content in kept.items():
                if path.read_bytes() != content:
                    path.write_bytes(content)
        verdict, why = judged(again, [job.get("result") for job in new.value or []], [str(world.inputs)])
        if new.status or any(job["error"] for job in new.value):
            return Outcome(name, plan.name, WRONG, f"the fresh sweep failed: {new.error or new.value}")
        ran = {job for job, found in zip(JOBS, again.value or [], strict=True) if found.get("skipped") is False}
        if ran != expected:
            return Outcome(name, plan.name, WRONG, f"{why} ran again: {sorted(ran)}, expected {sorted(expected)}")
        return Outcome(name, plan.name, verdict, why)


SWEEPS["changes"] = tuple(JOBS.values())
