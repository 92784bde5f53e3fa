"""The values of secret environment variables, and plain values without them."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

Plain = TypeVar("Plain")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # characters: shorter values are part of too many words


def secret_variables() -> list[tuple[str, str]]:
    """Name and value of the environment variables named like keys, tokens or passwords, the longest value first."""
    found = [(name, value) for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST]
    return sorted(found, key=lambda pair: -len(pair[1]))


def redacted(value: Plain) -> Plain:
    """Replace the values of secret environment variables by ``<NAME>``.

    Args:
        value: A text, or a dictionary, list or tuple of plain values.

    Returns:
        The same, with the texts replaced at any depth; values of other types and keys that are no texts stay.
    """
    return _redacted(value, secret_variables())


def _redacted(value: Any, secrets: list[tuple[str, str]]) -> Any:
    if isinstance(value, Mapping):
        return {_redacted(key, secrets): _redacted(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_redacted(item, secrets) for item in value) if type(value) in (list, tuple) else value
    if not isinstance(value, str):
        return value
    for name, secret in secrets:
        for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1]):  # as it is, and escaped in a message or in JSON
            value = value.replace(form, f"<{name}>")
    return value
