"""What the tests of bad input share."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from conftest import CONF, composed

from multicrop.config import check_overrides


@contextmanager
def refused(*words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """The block raises an error whose text holds all the words: the thing that is wrong, and what to do about it."""
    with pytest.raises(error) as caught:
        yield
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


def refusal(arguments: Sequence[str]) -> str:
    """The message with which a command line is refused before torch is imported; empty where it is not."""
    try:
        check_overrides(list(arguments), CONF)
    except ValueError as error:
        return str(error)
    return ""


def answer(arguments: Sequence[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """The exit status of `run.py` and its message, in this process."""
    from multicrop.runs.errors import tell
    from multicrop.runs.experiment import run

    capsys.readouterr()
    try:
        check_overrides(list(arguments), CONF)
        run(composed("trainer.progress=false", *(word for word in arguments if word != "-m")))
    except Exception as error:  # noqa: BLE001
        status = tell(error)
        return status, capsys.readouterr().err
    return 0, ""


def remedies(message: str) -> list[str]:
    """The overrides that a message proposes."""
    found = re.search(r"Write (.+)$", message.splitlines()[0])
    return shlex.split(found[1])[:1] if found else []


def with_remedy(arguments: Sequence[str], remedy: str) -> list[str]:
    """A command line with an override in place of that of the same knob."""
    name = remedy.split("=")[0]
    return [*(word for word in arguments if word.lstrip("+").split("=")[0] != name), remedy]
