"""Damaged files: a file that an earlier run left is changed, then everything is read and the sweep is repeated."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from multicrop.compare.collect import collect
from multicrop.record import RecordError
from multicrop.runs.sweep import scan
from storm.children import start
from storm.runs import SWEEPS, Place, Plan, content_of, sweep_of
from storm.world import HALVES, REFUSED, SAME, VERDICTS, WRONG, Outcome, World, judged

FINISHED = ("sweep", "few-shot fit", "stream")
KINDS = {  # the end of a file's path, and what it is
    ".safetensors": "shard",
    "layout.json": "bank layout",
    ".lock": "claim",
    ".index": "content index",
    "state.sealed": "stream state",
    ".sealed": "stream part",
    ".ckpt": "fit checkpoint",
    "record.json": "pointer to a record",
    "overrides.yaml": "overrides of a job",
}
FOLDERS = {".by_config": "index of finished runs", "encoders": "facts of an encoder", "texts": "features of texts"}
OTHER = (b"{}", b"[]", b"3", b'{"record": ".."}', b'{"files": {}, "seal": ""}', b'{"rows": {}}', b"null", b"a: 1\n")


def flipped(path: Path, rng: random.Random, _: list[Path]) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncated(path: Path, rng: random.Random, _: list[Path]) -> None:
    """Cut the file."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(max(1, len(content)))])


def zeroed(path: Path, rng: random.Random, _: list[Path]) -> None:
    """Zero the end, as a disk does that lost its last blocks."""
    content = path.read_bytes()
    kept = rng.randrange(max(1, len(content)))
    path.write_bytes(content[:kept] + bytes(len(content) - kept))


def emptied(path: Path, rng: random.Random, _: list[Path]) -> None:
    """Empty the file."""
    path.write_bytes(b"")


def removed(path: Path, rng: random.Random, _: list[Path]) -> None:
    """Remove the file."""
    path.unlink()


def other(path: Path, rng: random.Random, _: list[Path]) -> None:
    """Write other JSON."""
    path.write_bytes(rng.choice(OTHER))


def swapped(path: Path, rng: random.Random, like: list[Path]) -> None:
    """Exchange the file with another one of its kind."""
    second = rng.choice([one for one in like if one != path] or [path])
    one, two = path.read_bytes(), second.read_bytes()
    path.write_bytes(two)
    second.write_bytes(one)


DAMAGES: dict[str, Callable[[Path, random.Random, list[Path]], None]] = {
    "flip": flipped,
    "truncation": truncated,
    "zeroed tail": zeroed,
    "emptied": emptied,
    "removed": removed,
    "other content": other,
    "swap": swapped,
}


def kind_of(path: Path, place: Place) -> str:
    """What a file is."""
    if ".partial-" in path.name:
        return "leftover of a kill"
    if path.is_relative_to(place.cache) and path.name == "manifest.json":
        return "bank manifest"
    if path.parent.name in FOLDERS:
        return FOLDERS[path.parent.name]
    return next((kind for end, kind in KINDS.items() if path.name.endswith(end)), path.name)


def files_of(place: Place) -> dict[str, list[Path]]:
    """The files of a place by kind."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path for top in (place.cache, place.outputs) for path in top.rglob("*") if path.is_file()):
        found.setdefault(kind_of(path, place), []).append(path)
    return found


def fault(world: World, rng: random.Random) -> Outcome:
    """Damage a file of a finished or a killed sweep; read all records, repeat the sweep, and compare."""
    state = rng.choice([f"finished {kind}" for kind in FINISHED] + [f"half {kind}" for kind in HALVES])
    kind = state.split(" ", 1)[1]
    damage, expected = rng.choice(list(DAMAGES)), world.reference(kind)
    contents = world.contents(state) if state.startswith("finished") else {}
    with world.place(state) as place:
        files = files_of(place)
        on = rng.choice(sorted(files))
        path = rng.choice(files[on])
        DAMAGES[damage](path, rng, files[on])
        plan = Plan(SWEEPS[kind], rng.choice(("sweep-1", "sweep-2")))
        if path.is_relative_to(place.cache):  # so that banks and fits are read again
            plan = Plan(plan.jobs, plan.name, (*plan.more, "rerun=true"))
        repeated = sweep_of(place, plan)
        ended = start(lambda: {"read": read_all(place, contents, path.name), "jobs": repeated()}, place.scratch).wait()
        verdict, detail = SAME, ""
        if ended.status == 0:
            verdict, detail = ended.value["read"]
            ended = replace(ended, value=ended.value["jobs"])
        run, why = judged(ended, expected.results, [path.name])
        worst = max((verdict, run), key=VERDICTS.index)
        return Outcome(on, damage, worst, f"{path.relative_to(place.folder)}: {detail} {why}".strip())


def read_all(place: Place, contents: dict[str, Any], name: str) -> tuple[str, str]:
    """Read every record as `compare` and the sweep's view do; the verdict."""
    verdict, details = SAME, []
    for folder, expected in contents.items():
        try:
            same, error = content_of(place.outputs / folder) == expected, None
        except RecordError as refused:
            same, error = name in str(refused), str(refused)
        if not same:
            verdict = WRONG
            details.append(f"{folder}: {error or 'read without a word'};")
        elif error and verdict == SAME:
            verdict = REFUSED
    if contents:
        try:
            for run in collect([place.outputs])[0]:
                run.examples()
        except ValueError as error:
            verdict = verdict if name in str(error) else WRONG
            details.append(f"compare: {error}")
    for sweep in sorted(path for path in place.outputs.glob("sweep-*")):
        scan(sweep, None)
    return verdict, " ".join(details)
