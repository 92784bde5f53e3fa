"""Hashes of texts and files, and the identity of a result as named hashes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DIGEST = 16  # bytes of a hash


def content_hash(*parts: object) -> str:
    """A 32-digit hash of the texts of some values, in order."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """A 32-digit hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=DIGEST)).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Everything that decides a result, as named parts; results with equal identities are the same result.

    Args:
        parts: A hash per part, such as ``encoder``, ``texts`` or ``data``.
    """

    parts: Mapping[str, str]

    @property
    def key(self) -> str:
        """A hash of all parts."""
        return self.key_of(*self.parts)

    def key_of(self, *names: str) -> str:
        """A hash of some parts, for results that do not depend on the others; a part that is absent differs from every hash."""
        return content_hash(*(f"{name}={self.parts.get(name)}" for name in sorted(names)))

    def differences(self, other: "Identity") -> list[str]:
        """The names of the parts in which two identities differ."""
        return sorted(name for name in {*self.parts, *other.parts} if self.parts.get(name) != other.parts.get(name))
