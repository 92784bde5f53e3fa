"""Shared by all benchmarks: timing of alternatives in turn, medians with their range, and a table of ratios."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
clock = "wall"  # of `in_turn`


@dataclass(frozen=True)
class Timing:
    """Seconds of one alternative, one value per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: name, ratio, its range over rounds, and the target it should reach (None: no target)."""

    name: str
    ratio: float
    low: float
    high: float
    mark: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def reached(self) -> bool:
        return self.mark is None or (self.ratio <= self.mark if self.at_most else self.ratio >= self.mark)


def in_turn(ways: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm_up: int = 1) -> dict[str, Timing]:
    """Time all alternatives one after another in each round, so that a change of the machine's speed affects all of them."""
    for _ in range(warm_up):
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = CLOCKS[clock]()
            way()
            seconds[name].append(CLOCKS[clock]() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(name: str, over: Timing, under: Timing, *, mark: float | None = None, at_most: bool = False, note: str = "") -> Row:
    """Time of `over` / time of `under`: the median over rounds of the ratio within a round, with its range."""
    ratios = [a / b for a, b in zip(over.seconds, under.seconds, strict=True)]
    return Row(name, statistics.median(ratios), min(ratios), max(ratios), mark, at_most, note)


def native_bf16() -> bool:
    """Whether the processor multiplies bfloat16; without it such a measurement takes 50 times as long and says nothing."""
    return torch.cuda.is_available() or any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def native_int8() -> bool:
    """Whether the processor multiplies 8-bit integers; without it int8 is slower than fp32, minutes for a ViT-B."""
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def show(title: str, rows: list[Row]) -> None:
    """Print the rows as a table of 80 columns; the note of a row stands below its name."""
    table = Table(title=escape(title), title_justify="left", width=80)
    for column in ("", "ratio", "range", "mark", ""):
        table.add_column(column, justify="right" if column else "left", overflow="fold", no_wrap=column in ("ratio", "range", "mark"))
    for row in rows:
        mark = "" if row.mark is None else f"{'<=' if row.at_most else '>='} {row.mark:g}"
        verdict = "" if row.mark is None else ("reached" if row.reached else "missed")
        name = escape(row.name) + (f"\n[dim]{escape(row.note)}[/dim]" if row.note else "")
        table.add_row(name, f"{row.ratio:.2f}", f"{row.low:.2f}-{row.high:.2f}", mark, verdict)
    Console(width=80).print(table)
