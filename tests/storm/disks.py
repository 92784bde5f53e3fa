"""Disks: full at some call or byte, over a quota, read-only, or with an error that passes; then the sweep is repeated on a good one."""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from storm.children import Ended, Strike, fail_at_byte, start
from storm.runs import SWEEPS, Place, Plan, sweep_of
from storm.world import WRONG, Outcome, World, judged

KINDS = ("bank", "zero-shot", "few-shot fit", "stream", "sweep")
SIZE, PAGE = 16 << 20, 4096  # bytes of the small disk, and of its blocks
PAGES = 60  # a run writes fewer
LARGEST = 20_000  # bytes of the files of a run, about


def failing(number: int, *events: str) -> Callable[[str, str], None]:
    """What a strike does: raise this error of the system at these calls, by default at all."""

    def act(event: str, path: str) -> None:
        absent = event == "os.remove" and not Path(path).exists()  # which the system says first
        if not absent and (not events or event in events):
            raise OSError(number, os.strerror(number), path)

    return act


def fault(world: World, rng: random.Random) -> Outcome:
    """Run a sweep on a bad disk, then again on a good one."""
    kind, how = rng.choice(KINDS), rng.choice(("full", "full at a call", "quota", "read-only cache", "read-only outputs", "passing error"))
    disk = world.once("disk", lambda: small_disk(world.top / "disk")) if how == "full" else None
    how = how if how != "full" or disk else "quota"
    state = f"finished {kind}" if how == "read-only cache" and rng.random() < 0.5 and kind != "bank" else None
    expected, plan = world.reference(kind), Plan(SWEEPS[kind])
    if state:
        plan = replace(plan, more=(*plan.more, "rerun=true"))
    with world.place(state) as whole_place:
        place = whole_place if disk is None else Place(world.inputs, disk / "fault", told=whole_place.folder / "scratch")
        ended = struck(place, plan, how, rng, expected.calls)
        verdict, why = judged(ended, expected.results, [str(place.cache), str(place.outputs), str(world.inputs)])
        left = [path.name for top in (place.cache, place.outputs) for path in top.rglob("*.partial-*")]
        if left:
            verdict, why = WRONG, f"left {', '.join(left)}; {why}"
        again, wrong = judged(start(sweep_of(place, plan), place.scratch).wait(), expected.results, [])
        if disk:
            shutil.rmtree(place.folder)
    if again == WRONG:
        return Outcome(kind, how, WRONG, f"repeated on a good disk: {wrong}; before: {why}")
    return Outcome(kind, how, verdict, why)


def struck(place: Place, plan: Plan, how: str, rng: random.Random, calls: int) -> Ended:
    """The sweep on a bad disk."""
    at, strike, size, ballast = rng.randrange(calls), None, None, place.folder.parent / "ballast"
    if how == "full at a call":
        strike = Strike(place.cache, place.outputs, at=at, act=failing(errno.ENOSPC, "open", "os.mkdir"), calls="write", once=False)
    elif how.startswith("read-only"):
        strike = Strike(place.folder / how.split()[1], at=0, act=failing(errno.EROFS), calls="write", once=False)
    elif how == "passing error":
        number = rng.choice((errno.EIO, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN))
        strike = Strike(place.inputs, place.cache, place.outputs, at=at, act=failing(number, "open"), calls="read")
    elif how == "quota":
        size = int(LARGEST ** rng.random())
    else:
        free = shutil.disk_usage(place.folder.parent).free
        ballast.write_bytes(bytes(max(0, free - PAGE * rng.randrange(PAGES))))

    play = sweep_of(place, plan)

    def work() -> list:
        if size is not None:
            fail_at_byte(size)
        return play()

    try:
        return start(work, place.scratch, strike).wait()
    finally:
        if how == "full":
            ballast.unlink()


def small_disk(folder: Path) -> Path | None:
    """A small file system of its own; None where this user may not make one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        return folder if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None
    except FileNotFoundError:
        return None


def release(folder: Path) -> None:
    """Give the small file system back, if there is one."""
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
