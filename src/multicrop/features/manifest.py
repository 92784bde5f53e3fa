"""The small files of a bank: the size of its shards, fixed by the first writer, and the manifest, written when all shards are."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from multicrop.files import content_hash, naming, write_text

LAYOUT, MANIFEST, KNOB = "layout.json", "manifest.json", "paths.cache"


def write_sealed(path: Path, facts: Mapping[str, object]) -> None:
    """Write facts as JSON with their checksum; raises OSError that names the file and the knob."""
    with naming(path, KNOB):
        write_text(path, json.dumps({**facts, "checksum": _checksum(facts)}, indent=1))


def read_sealed(path: Path) -> dict | None:
    """Facts whose checksum is right; None where the file is missing, cannot be parsed or holds anything else."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        checksum = facts.pop("checksum")
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return facts if checksum == _checksum(facts) else None


def _checksum(facts: Mapping[str, object]) -> str:
    return content_hash(json.dumps(facts, sort_keys=True))


def stored_size(folder: Path) -> int | None:
    """Images per shard of a bank that was begun; None where neither its layout nor its manifest says it."""
    for name in (LAYOUT, MANIFEST):
        size = (read_sealed(folder / name) or {}).get("shard_images")
        if size:
            return size
    return None


def agreed_size(folder: Path, wanted: int) -> int:
    """Images per shard of a bank, which the first process that asks decides for all.

    Args:
        folder: The folder of the bank.
        wanted: Images per shard where the bank is new.

    Returns:
        The size with which the bank was begun.

    Raises:
        OSError: If the layout cannot be written.
    """
    if (size := stored_size(folder)) is not None:
        return size
    with naming(folder / LAYOUT, KNOB), FileLock(folder / "layout.lock"):
        if (size := stored_size(folder)) is not None:
            return size
        write_sealed(folder / LAYOUT, {"shard_images": wanted})
    return wanted


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged file, with a warning, so that it is made again.

    Raises:
        PermissionError: If the folder cannot be written to.
    """
    try:
        path.replace(path.with_name(f"{path.name}.damaged"))
    except FileNotFoundError:
        return  # another process did it
    except OSError as error:
        raise PermissionError(
            f"{path} {why}, and it cannot be made again because {path.parent} cannot be written to ({error.strerror}): "
            f"make the folder writable, or choose another place with {KNOB}=FOLDER"
        ) from error
    warnings.warn(f"{path} {why}; it is kept as {path.name}.damaged and made again", stacklevel=2)
