"""Kills: each kind of run is ended at a random moment, call or byte, once or several times, and then run again."""

import random
import signal

from storm.children import Ended, Strike, kill_at_byte, start
from storm.runs import SWEEPS, Place, Plan, sweep_of
from storm.world import WRONG, Outcome, World, judged, kill

TIMES = (1, 1, 1, 2, 3)  # kills of one run
POLITE = {signal.SIGTERM: 143, signal.SIGINT: 130}
LARGEST = 20_000  # bytes of the files of a run, about
KINDS = ("bank", "zero-shot", "few-shot fit", "stream", "sweep")
OLDER = "record over another"  # a run whose folder holds the record of another one


def fault(world: World, rng: random.Random) -> Outcome:
    """Kill a run, run it again, and compare."""
    kind = rng.choice((*KINDS, OLDER))
    state, swept = (None, kind) if kind != OLDER else ("finished stream", "zero-shot")
    expected, plan = world.reference(swept), Plan(SWEEPS[swept])
    with world.place(state) as place:
        for _ in range(rng.choice(TIMES)):
            how = rng.choice(("at a call", "at a call", "at a byte", "SIGKILL", "SIGTERM", "SIGINT"))
            ended = killed(place, plan, how, rng, expected.seconds, expected.calls)
            if (wrong := rude(ended, how)) is not None:
                return Outcome(kind, how, WRONG, wrong)
        again = start(sweep_of(place, plan), place.scratch).wait()
        return Outcome(kind, how, *judged(again, expected.results, [str(place.folder)]))


def killed(place: Place, plan: Plan, how: str, rng: random.Random, seconds: float, calls: int) -> Ended:
    """A run that gets a fault, if it does not end before."""
    strike = Strike(place.cache, place.outputs, at=rng.randrange(calls), act=kill) if how == "at a call" else None
    size = int(LARGEST ** rng.random()) if how == "at a byte" else None

    play = sweep_of(place, plan)

    def work() -> list:
        if size is not None:
            kill_at_byte(size)
        return play()

    child = start(work, place.scratch, strike)
    if how.startswith("SIG"):
        child.signal_after(rng.uniform(0, seconds), signal.Signals[how])
    return child.wait()


def rude(ended: Ended, how: str) -> str | None:
    """What is wrong with the end of a killed run; None where it is as it must be: dead, stopped politely, or whole."""
    allowed = {0, -signal.SIGKILL, -signal.SIGXFSZ}
    if how in ("SIGTERM", "SIGINT"):
        number = signal.Signals[how]
        allowed = {0, POLITE[number], -number if how == "SIGTERM" else 1}  # at once before the run begins and after it
        if ended.status == POLITE[number] and f"stopped by {how}" not in ended.text:
            return f"stopped without a word: {ended.text[-300:]}"
    if ended.hung:
        return "it hangs"
    return None if ended.status in allowed else f"ended with {ended.status}: {ended.error or ended.text[-300:]}"
