"""Several processes with different knobs that work on one bank and one index of finished runs at once; one of them may be killed."""

import random
import signal

from storm.children import start
from storm.runs import SWEEPS, Place, Plan, sweep_of
from storm.world import SAME, WRONG, Outcome, World, judged

MOST = 3
TOLERANCE = 1e-3  # of logits: threads and sizes of batches change the order of sums
KINDS = ("bank", "zero-shot", "few-shot fit", "stream")


def fault(world: World, rng: random.Random) -> Outcome:
    """Start the writers, perhaps kill one, compare their results, and repeat the killed one."""
    kinds = [rng.choice(KINDS)] * MOST if rng.random() < 0.5 else rng.sample(KINDS, MOST)
    kinds = kinds[: rng.randint(2, MOST)]
    plans = [Plan(SWEEPS[kind], f"writer-{number}", knobs(rng)) for number, kind in enumerate(kinds)]
    victim = rng.randrange(len(plans)) if rng.random() < 0.3 else None
    expected = [world.reference(kind) for kind in kinds]
    on, how = " + ".join(sorted(set(kinds))), "one killed" if victim is not None else "all end"
    with world.place() as place:
        alone = [Place(place.inputs, place.folder, place.folder / f"scratch-{number}") for number in range(len(plans))]
        children = [start(sweep_of(place, plan), at.scratch) for plan, at in zip(plans, alone, strict=True)]
        if victim is not None:
            children[victim].signal_after(rng.uniform(0, expected[victim].seconds), signal.SIGKILL)
        ended = [child.wait() for child in children]
        if victim is not None and ended[victim].status == -signal.SIGKILL:
            ended[victim] = start(sweep_of(place, plans[victim]), alone[victim].scratch).wait()
        for plan, found, reference in zip(plans, ended, expected, strict=True):
            verdict, why = judged(found, reference.results, [], TOLERANCE)
            if verdict != SAME:
                return Outcome(on, how, WRONG, f"{plan.name} {' '.join(plan.more)}: {why}")
    return Outcome(on, how, SAME)


def knobs(rng: random.Random) -> tuple[str, ...]:
    """Knobs that decide no result; few combinations, so that each is composed once."""
    shards, batch, threads = rng.choice(((4, 4, 1), (2, 4, 1), (16, 8, 1), (8, 3, 2)))
    return f"trainer.shard_images={shards}", f"trainer.batch_size={batch}", f"trainer.threads={threads}"
