"""Sealed files: content behind a checksum that covers its meaning, and the manifest of a folder."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from multicrop.files.access import atomic, write_text
from multicrop.files.identity import DIGEST, content_hash, file_hash

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"  # of a folder: a hash per file


class DamagedFileError(ValueError):
    """Raised for a file whose content is not what was sealed."""


def write_sealed(path: Path, payload: bytes, meaning: str) -> None:
    """Write a file with a seal, whole or not at all.

    Args:
        path: The file to write; its folder must exist.
        payload: The content.
        meaning: Everything outside the content that decides what it means, such as the key of its run and its number.
    """
    with atomic(path) as partial:
        partial.write_bytes(_seal(payload, meaning) + payload)


def read_sealed(path: Path, meaning: str) -> bytes:
    """Read a file that `write_sealed` wrote.

    Args:
        path: The file.
        meaning: The meaning that it was written with.

    Returns:
        The content.

    Raises:
        DamagedFileError: If the content was changed, or written with another meaning.
    """
    content = path.read_bytes()
    seal, payload = content[:DIGEST], content[DIGEST:]
    if seal != _seal(payload, meaning):
        raise DamagedFileError(f"{path} is damaged or belongs to another run: its content does not match its checksum")
    return payload


def _seal(payload: bytes, meaning: str) -> bytes:
    digest = hashlib.blake2b(f"{meaning}\0".encode(), digest_size=DIGEST)
    digest.update(payload)
    return digest.digest()


def write_facts(path: Path, facts: Mapping[str, object]) -> None:
    """Write facts as JSON with their checksum, whole or not at all; the folder of the file must exist."""
    write_text(path, json.dumps({**facts, "checksum": _checksum(facts)}, indent=1))


def read_facts(path: Path) -> dict | None:
    """Facts that `write_facts` wrote; None where the file is missing, cannot be parsed, or its checksum is another's."""
    try:
        return facts_in(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def facts_in(content: bytes) -> dict | None:
    """Facts in the content of a file that `write_facts` wrote; None where it cannot be parsed, or its checksum is another's."""
    try:
        facts = json.loads(content.decode("utf-8"))
        checksum = facts.pop("checksum")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return facts if checksum == _checksum(facts) else None


def _checksum(facts: Mapping[str, object]) -> str:
    return content_hash(json.dumps(facts, sort_keys=True))


def set_aside(path: Path, why: str, knob: str) -> None:
    """Rename a damaged file to ``NAME.damaged``, with a warning, so that it is not read again.

    Args:
        path: The file; nothing happens if another process has renamed it.
        why: What is wrong with it and what follows, for the warning.
        knob: The configuration knob that names its folder, for the error.

    Raises:
        PermissionError: If the folder cannot be written to.
    """
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PermissionError(
            f"{path} {why}, but {path.parent} cannot be written to ({error.strerror}): make the folder writable, or choose another place "
            f"with {knob}=FOLDER"
        ) from error
    log.warning("%s %s; the damaged file is kept as %s", path, why, aside.name)


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Write manifest.json: a hash of each of these files of a folder. It is written last."""
    write_facts(folder / MANIFEST, {"files": {name: file_hash(folder / name) for name in sorted(names)}})


def damaged_files(folder: Path, *names: str) -> list[str]:
    """The files that are missing or differ from the manifest of their folder.

    Args:
        folder: A folder with a manifest.
        names: The files to check; by default all files of the manifest.

    Returns:
        Their names; the manifest's own if it is damaged.
    """
    facts = read_facts(folder / MANIFEST)
    if facts is None or not isinstance(hashes := facts.get("files"), dict):
        return [MANIFEST]
    return [name for name in names or hashes if not (folder / name).is_file() or file_hash(folder / name) != hashes.get(name)]
