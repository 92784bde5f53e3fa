"""The program: python -m storm --faults 2000 --seed 1. It prints a table and ends with status 1 if any result is wrong."""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from storm import changes, damages, disks, kills, writers
from storm.world import VERDICTS, WRONG, Outcome, World

FAULTS, SEED = 100, 1
KINDS: dict[str, tuple[Callable[[World, random.Random], Outcome], int]] = {  # what makes a fault, and how often it is drawn
    "kill": (kills.fault, 30),
    "damage": (damages.fault, 40),
    "change": (changes.fault, 8),
    "disk": (disks.fault, 16),
    "writers": (writers.fault, 6),
}
Counts = Counter[tuple[str, str, str]]  # kind, what was struck, verdict


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m storm", description=__doc__)
    parser.add_argument("--faults", type=int, default=FAULTS, help="how many faults")
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=SEED, help="draws the faults")
    parser.add_argument("--only", choices=KINDS, help="only faults of this kind")
    parser.add_argument("--first", type=int, default=0, help="the number of the first fault")
    parser.add_argument("--fault", type=int, help="only the fault of this number")
    parser.add_argument("--until-wrong", action="store_true", help="stop at the first wrong result")
    parser.add_argument("--json", type=Path, help="write the counts into this file")
    parser.add_argument("--merge", type=Path, nargs="+", help="run nothing; print the table of several such files")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storm; the exit status."""
    chosen = options().parse_args(arguments)
    if chosen.merge:
        counts, wrong = merged(chosen.merge)
    else:
        counts, wrong = storm(chosen)
    (print_markdown if chosen.markdown else print_table)(counts)
    for line in wrong:
        print(f"WRONG {line}")
    if chosen.json:
        chosen.json.write_text(json.dumps({"counts": [[*key, count] for key, count in sorted(counts.items())], "wrong": wrong}, indent=1))
    return int(bool(wrong))


def storm(chosen: argparse.Namespace) -> tuple[Counts, list[str]]:
    """Make the faults; what became of them, and those that went wrong, with the words that repeat each."""
    counts, wrong = Counts(), list[str]()
    top = Path(tempfile.mkdtemp(prefix="storm-"))
    try:
        world = World(top)
        for kind, number, outcome in faults(world, chosen):
            counts[kind, outcome.on, outcome.verdict] += 1
            if outcome.verdict == WRONG:
                again = f"--seed {chosen.seed} --only {kind} --fault {number}"
                wrong.append(f"{kind}: {outcome.on}, {outcome.how} ({again}): {outcome.detail}")
                print(f"WRONG {wrong[-1]}", flush=True)
                if chosen.until_wrong:
                    break
            elif chosen.fault is not None:
                print(f"{kind}: {outcome.on}, {outcome.how}: {outcome.verdict}. {outcome.detail}")
    finally:
        disks.release(top / "disk")
        shutil.rmtree(top, ignore_errors=True)
    return counts, wrong


def faults(world: World, chosen: argparse.Namespace) -> Iterator[tuple[str, int, Outcome]]:
    """The faults one after the other, with a progress bar."""
    numbers = [chosen.fault] if chosen.fault is not None else range(chosen.first, chosen.first + chosen.faults)
    started = time.monotonic()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("faults", total=len(numbers))
        for number in numbers:
            if chosen.seconds is not None and time.monotonic() - started > chosen.seconds:
                break
            kind = chosen.only or random.Random(f"{chosen.seed} {number}").choices(list(KINDS), [often for _, often in KINDS.values()])[0]
            yield kind, number, KINDS[kind][0](world, random.Random(f"{chosen.seed} {kind} {number}"))
            progress.advance(bar)


def merged(files: Sequence[Path]) -> tuple[Counts, list[str]]:
    """The counts of several runs, and what went wrong in them."""
    counts, wrong = Counts(), list[str]()
    for path in files:
        told = json.loads(path.read_text())
        for *key, count in told["counts"]:
            counts[tuple(key)] += count
        wrong += told["wrong"]
    return counts, wrong


def rows(counts: Counts) -> list[list[str]]:
    """The table: kind, what was struck, tried, and how often each verdict; the last row is the sum."""
    struck = sorted({(kind, on) for kind, on, _ in counts}, key=lambda pair: (list(KINDS).index(pair[0]), pair[1]))
    found = [[kind, on, *(counts[kind, on, verdict] for verdict in VERDICTS)] for kind, on in struck]
    found.append(["all", "", *(sum(row[place] for row in found) for place in (2, 3, 4))])
    return [[kind, on, str(sum(values)), *map(str, values)] for kind, on, *values in found]


def print_table(counts: Counts) -> None:
    """Print the table to the terminal."""
    table = Table("fault", "file or run", *("tried", *VERDICTS))
    for row in rows(counts):
        table.add_row(*row)
    Console().print(table)


def print_markdown(counts: Counts) -> None:
    """Print the table in Markdown."""
    print("| fault | file or run | tried |", " | ".join(VERDICTS), "|")
    print("|---|---|---:|---:|---:|---:|")
    for row in rows(counts):
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    logging.getLogger("lightning").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the small disk is given back
    sys.exit(main())
