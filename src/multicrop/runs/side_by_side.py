"""Threads that each compute alone: groups of images are then read, encoded and explained side by side, and no core waits for another."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The function of each item, in the order of the items, computed by so many threads at once.

    Args:
        function: Several threads call it at once; torch's operations within it take one thread each.
        items: The items.
        threads: Number of threads.
    """
    with _alone(threads) as pool:
        yield from pool.map(function, items)


@contextmanager
def _alone(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch's operations take one thread each.

    torch keeps that number per thread, and a number for threads that have not asked yet, which is set back once all have.
    """
    before, started = torch.get_num_threads(), threading.Barrier(threads + 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="predict", initializer=_take_one_thread) as pool:
        for _ in range(threads):
            pool.submit(started.wait)
        started.wait()
        torch.set_num_threads(before)
        yield pool


def _take_one_thread() -> None:
    torch.get_num_threads()  # a thread that asks for the first time later would take the number of the process
    torch.set_num_threads(1)
