"""Errors as users see them: an expected mistake is one message; a defect is named as such, with the path of its traceback."""

import dis
import os
import sys
import tempfile
import traceback
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from multicrop.config import PACKAGE
from multicrop.files import redacted, write_text
from multicrop.runs.secrets import redact_error

MISTAKE, DEFECT = 2, 1  # exit statuses
VARIABLE = "MULTICROP_TRACEBACK"
LOG = "traceback.txt"


def tell(error: BaseException, folder: Path | None = None) -> int:
    """Print an error to the standard error stream: a mistake as its message, a defect with the place of its traceback.

    With the environment variable MULTICROP_TRACEBACK the traceback is printed too.

    Args:
        error: The error.
        folder: The run's folder, into which the traceback of a defect is written; None: a temporary file.

    Returns:
        The exit status: 2 for a mistake, 1 for a defect.
    """
    redact_error(error)
    if os.environ.get(VARIABLE):
        traceback.print_exception(error)
    if (message := mistake(error)) is not None:
        print(f"error: {redacted(message)}", file=sys.stderr)  # noqa: T201
        return MISTAKE
    print(redacted(f"error: {_defect(error, folder)}"), file=sys.stderr)  # noqa: T201
    return DEFECT


def mistake(error: BaseException | None) -> str | None:
    """The message of an expected mistake: what this package raises on purpose, a path that cannot be used, or a configuration error.

    Other errors may be the wrapping of one that is expected, their cause. Returns None for a defect.
    """
    if error is None:
        return None
    if _on_purpose(error) or (isinstance(error, HydraException | OmegaConfBaseException) and not isinstance(error, InstantiationException)):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror}. Correct the path, or make room and access for it"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        first = str(error).splitlines()[:1]
        return f"the memory does not suffice ({''.join(first)}). Lower trainer.batch_size, crop.n_crops or trainer.num_workers"
    if isinstance(error, InstantiationException) and (error.__cause__ is None or _of_the_call(error.__cause__)):
        return str(error).splitlines()[0]
    return mistake(error.__cause__)


def _on_purpose(error: BaseException) -> bool:
    """Whether a `raise` statement of this package raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code, file = trace.tb_frame.f_code, Path(trace.tb_frame.f_code.co_filename)
    ours = file.is_relative_to(PACKAGE) or "hydra_plugins" in file.parts
    return ours and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _of_the_call(error: BaseException) -> bool:
    """Whether Hydra's call of a component failed by its arguments, before the component began."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return isinstance(error, TypeError) and trace is not None and "hydra" in Path(trace.tb_frame.f_code.co_filename).parts


def _defect(error: BaseException, folder: Path | None) -> str:
    """What happened, where, and where the traceback is."""
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    trace = "".join(traceback.format_exception(error))
    try:
        if folder is None:
            with tempfile.NamedTemporaryFile("w", prefix="multicrop-", suffix=f"-{LOG}", delete=False, encoding="utf-8") as file:
                file.write(redacted(trace))
            path = Path(file.name)
        else:
            write_text(path := folder / LOG, redacted(trace))
    except OSError:
        return f"this is a defect of multicrop, not of your command: {said}. Its log could not be written; here it is\n{trace}"
    return (
        f"this is a defect of multicrop, not of your command: {said}. The traceback is in {path}; please report it with the command "
        f"({VARIABLE}=1 prints it)"
    )
