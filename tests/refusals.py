"""What the tests of bad input share."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def refused(*words: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """The block raises an error whose text holds all the words: the thing that is wrong, and what to do about it."""
    with pytest.raises(error) as caught:
        yield
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"
