"""Writing files whole or not at all, reading them again after a passing error, and text without the values of secrets."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
Read = TypeVar("Read")
RETRY_SECONDS = (0.1, 0.5, 2.0)
LASTING = frozenset(
    (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EROFS)
)  # errors of the system that say something about the file itself


class PersistentError(OSError):
    """An error of the disk, the network or the system that stayed after several tries."""


def is_passing(error: OSError) -> bool:
    """Whether the system, not the file, is at fault, so that another try may succeed (EIO, EMFILE, ESTALE, ETIMEDOUT, ENOMEM ...)."""
    return error.errno is not None and error.errno not in LASTING and not isinstance(error, PersistentError)


def retrying(read: Callable[[], Read], name: object) -> Read:
    """Read something, several times where the system fails for the moment.

    Args:
        read: Reads it.
        name: The file, for the message.

    Returns:
        What `read` returns.

    Raises:
        PersistentError: If the system fails each time. Other errors are raised at once, as they are.
    """
    for wait in (*RETRY_SECONDS, None):
        try:
            return read()
        except OSError as error:
            if not is_passing(error):
                raise
            if wait is None:
                message = f"{error.strerror}, {len(RETRY_SECONDS) + 1} times; check the disk, the network and the limits of the system"
                raise PersistentError(error.errno, f"{message}, then run the same command again", str(name)) from error
            log.warning("%s cannot be read (%s); next try in %.1f s", name, error.strerror, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error and is removed otherwise.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The path to write to. It holds the process number, so that several processes may write the same file.

    Raises:
        OSError: If the block raises OSError; it names the file, which the system leaves out where a disk is full.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if path.name in str(error):
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def naming(path: Path, knob: str) -> Iterator[None]:
    """Say in an error of writing which file could not be written, and which knob chooses another place.

    Args:
        path: The file that the block writes.
        knob: The configuration knob that names its folder.

    Raises:
        OSError: If the block raises OSError; it names the file and the knob, once where such blocks are nested.
    """
    try:
        yield
    except OSError as error:
        if knob in str(error):
            raise
        message = f"cannot write {path} ({error.strerror or error}); free some disk space or choose another place with {knob}=FOLDER"
        raise OSError(error.errno or errno.EIO, message) from error


def save_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """Write a matplotlib figure whole or not at all.

    Args:
        figure: The figure.
        path: The file, whose suffix names the format.
        dpi: Pixels per inch of a raster format.
    """
    with atomic(path) as partial:
        figure.savefig(partial, dpi=dpi, format=path.suffix[1:])


def as_yaml(values: dict | list) -> str:
    """Plain values as YAML, written by libyaml where PyYAML has it (ten times faster)."""
    return yaml.dump(values, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, allow_unicode=True)


def make_folder(folder: Path, knob: str) -> None:
    """Create a folder and check that it can be written to.

    Args:
        folder: The folder, with its parents.
        knob: The configuration knob that names it, for the message.

    Raises:
        PermissionError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write to {folder} ({error.strerror}); choose another place with {knob}=FOLDER") from error
