"""Objects: named bytes in object storage, or in a folder, each written once by whoever comes first."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("s3", "gs", "az", "file")
RETRY = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}  # of a server that answers 500 to 599, or not at all
CLIENT = {"timeout": "10min", "connect_timeout": "10s"}
PAGE = 1000
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL",),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}  # of other servers


def is_url(place: object) -> bool:
    """Whether a place is named by a URL, such as ``s3://bucket/banks``, and not by a path."""
    return "://" in str(place)


class ObjectStoreError(OSError):
    """An object could not be read or written."""


@dataclass(frozen=True)
class StoredObject:
    """An object as it is listed: its name below the URL, its size in bytes, and when it was written (seconds since the epoch)."""

    name: str
    size: int
    modified: float


@dataclass(frozen=True)
class Objects:
    """The objects below a URL; credentials come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix`` (account: AZURE_STORAGE_ACCOUNT_NAME) or ``file:///folder``.

    Raises:
        ValueError: If the URL has another scheme, or holds credentials.
    """

    url: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"a place in object storage begins with {', '.join(f'{s}://' for s in SCHEMES)}, got {parts.scheme}://")
        if "@" in parts.netloc or parts.query:
            raise ValueError(f"{parts.scheme}://... holds credentials, which records and logs would keep: set them in the environment")

    def below(self, *names: str) -> "Objects":
        """The objects below a name."""
        return Objects("/".join([self.url.rstrip("/"), *names]))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object, unless there is one.

        Args:
            name: Its name below the URL.
            content: Its bytes.

        Returns:
            Whether it was written; False where another writer came first.

        Raises:
            ObjectStoreError: If it cannot be written.
        """
        try:
            with self._store(name) as store:
                store.put(name, content, mode="create")
        except FileExistsError:
            return False
        except FileNotFoundError as error:
            raise _unusable(f"{self.url}/{name}", error) from error
        return True

    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None where there is none.

        Raises:
            ObjectStoreError: If it cannot be read.
        """
        try:
            with self._store(name) as store:
                return bytes(store.get(name).bytes())  # the content is received here
        except FileNotFoundError:
            return None

    def part(self, name: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` to `end`, which is not included.

        Raises:
            FileNotFoundError: If there is no such object.
            ObjectStoreError: If it cannot be read.
        """
        with self._store(name) as store:
            return bytes(store.get_range(name, start=start, end=end))

    def facts(self, name: str) -> StoredObject | None:
        """Size and time of an object; None where there is none."""
        try:
            with self._store(name) as store:
                found = store.head(name)
        except FileNotFoundError:
            return None
        return StoredObject(name, found["size"], found["last_modified"].timestamp())

    def has(self, name: str) -> bool:
        """Whether there is an object of this name."""
        return self.facts(name) is not None

    def list(self, prefix: str | None = None) -> Iterator[StoredObject]:
        """All objects below a name, read page by page."""
        with self._store(prefix) as store:
            for page in store.list(prefix, chunk_size=PAGE):
                yield from (StoredObject(found["path"], found["size"], found["last_modified"].timestamp()) for found in page)

    def folders(self, prefix: str | None = None) -> Sequence[str]:
        """The names below a name that hold further objects, without what stands before their last part."""
        with self._store(prefix) as store:
            return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in store.list_with_delimiter(prefix)["common_prefixes"])

    def move(self, name: str, other: str) -> None:
        """Give an object another name; nothing happens if it is not there."""
        try:
            with self._store(name) as store:
                store.rename(name, other)
        except FileNotFoundError:
            return

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that are not there count as deleted."""
        for first in range(0, len(names), PAGE):
            page = list(names[first : first + PAGE])
            try:
                with self._store() as store:
                    store.delete(page)
            except FileNotFoundError:  # a folder on disk: the others of the page remain
                for name in page if len(page) > 1 else ():
                    self.delete([name])

    @contextmanager
    def _store(self, name: str | None = None) -> Iterator[Any]:
        """The store of obstore; its errors become those of files: FileExistsError, and ObjectStoreError with what to check."""
        obstore = _obstore(self.url)
        try:
            yield _connected(self.url)
        except obstore.exceptions.AlreadyExistsError as error:
            raise FileExistsError(errno.EEXIST, "exists", name) from error
        except obstore.exceptions.BaseError as error:
            raise _unusable(self.url if name is None else f"{self.url}/{name}", error) from error


def _unusable(place: str, error: Exception) -> ObjectStoreError:
    """The error of a place, and what to check."""
    message = f"{place} cannot be used ({str(error).splitlines()[0]}). Check the bucket, its address and the credentials in the environment"
    return ObjectStoreError(f"{message}, then run the same command again")


def _obstore(url: str) -> Any:
    """The module obstore."""
    try:
        import obstore
    except ImportError as error:
        raise ImportError(f"{url} needs obstore: pip install -c constraints.txt -e '.[objects]'") from error
    return obstore


@cache
def _connected(url: str) -> Any:
    """The store of obstore for a URL, which this process keeps."""
    from obstore import store

    connect: Any = store.from_url  # its overloads ask for the kind of store
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return connect(url, mkdir=True)
    plain = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS[scheme])
    return connect(url, client_options=CLIENT | {"allow_http": plain}, retry_config=RETRY)
