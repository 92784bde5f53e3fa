"""Shapes and types of arrays are checked in the first calls of each function in each test; loops repeat what these have shown."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from beartype import beartype

CALLS = 2
_tests = [0]  # how many have begun


def begin_test() -> None:
    """Check the first calls of each function again."""
    _tests[0] += 1


def first_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """A typechecker for jaxtyping, which gives it functions without a body: beartype, made at the first call."""
    checked, test, calls = None, 0, 0

    @wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked, test, calls
        if test != _tests[0]:
            test, calls = _tests[0], 0
        if calls == CALLS or torch.jit.is_tracing():  # which compares the operations of two calls
            return None
        calls, checked = calls + 1, checked or beartype(function)
        return checked(*args, **kwargs)

    return check
