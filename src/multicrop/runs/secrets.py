"""Keeps the values of secret environment variables out of what Hydra writes: its copies of the overrides, its logs and its errors."""

import logging
import re
from collections.abc import Collection, Sequence

from multicrop.files import SECRET, SHORTEST, redacted, secret_variables


def hide_secrets(arguments: Sequence[str], groups: Collection[str] = ()) -> list[str]:
    """Replace the values of secret variables in overrides by references, so that nothing that stores an override holds a secret.

    ``+note=VALUE`` becomes ``+note=${oc.env:NAME}``, which has the same value in the run (a number becomes a text). Flags and options of
    config groups stay.

    Args:
        arguments: The command line without the program's name.
        groups: Names of the config groups, whose values are names of files.

    Returns:
        The command line to run.

    Raises:
        ValueError: If an override adds a knob named like a secret with a value that no variable holds.
    """
    hidden = [word if word.startswith("-") or "=" not in word or word.split("=")[0] in groups else _hidden(word) for word in arguments]
    for word in hidden:
        name, _, value = word.partition("=")
        added = name.startswith("+") and SECRET.search(name.rsplit(".", 1)[-1])
        if added and len(value.strip("'\"")) >= SHORTEST and "${" not in value:
            variable = name.lstrip("+").rsplit(".", 1)[-1].upper()
            raise ValueError(
                f"{name}=... is named like a secret, and Hydra writes overrides into files: put the value into an environment variable "
                f"and pass '{name}=${{oc.env:{variable}}}'"
            )
    return hidden


def _hidden(word: str) -> str:
    for name, value in secret_variables():
        escaped = "".join(rf"\\?{re.escape(letter)}" for letter in value)  # Hydra's grammar escapes by a backslash
        word = re.sub(escaped, lambda _, new=f"${{oc.env:{name}}}": new, word)
    return word


def redact_error(error: BaseException) -> None:
    """Replace the values of secret variables in the texts of an error and of those that led to it, before it is printed or logged."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        one = errors.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = redacted(one.args)
        for name in ("filename", "filename2", "strerror", "msg", "__notes__"):  # of OSError, SyntaxError and add_note
            if getattr(one, name, None):
                setattr(one, name, redacted(getattr(one, name)))
        errors += [one.__cause__, one.__context__]


class RedactingFormatter(logging.Formatter):
    """Formats a log record, with its traceback, without the values of secret variables; conf/hydra/default.yaml names it."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of the record."""
        return redacted(super().format(record))
