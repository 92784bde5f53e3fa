"""Files that a run writes: whole or not at all, hashed by content, without secrets."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8  # characters: shorter values are part of too many words


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends without an error and is removed otherwise.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The path to write to. It holds the process number, so that several processes may write the same file.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """Write a matplotlib figure whole or not at all, in the format that the file's ending names."""
    with atomic(path) as partial:
        figure.savefig(partial, dpi=dpi, format=path.suffix[1:])


def as_yaml(values: dict) -> str:
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


def content_hash(*parts: object) -> str:
    """A 32-digit hash of the texts of some values, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()


def redacted(text: str) -> str:
    """The text with the values of environment variables named like keys, tokens or passwords replaced by the variables' names."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, f"<{name}>")
    return text
