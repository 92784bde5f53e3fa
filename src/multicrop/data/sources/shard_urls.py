"""The tar shards that a pattern names: files, objects, or URLs of a stream. A pattern that would run a command is refused."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

from multicrop.files import RemoteFile, file_at, files_at

SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:")
WEB = re.compile(r"(https?|hf)://[\w.~:/?#@!&()*+,;=%\[\]-]+", re.ASCII)  # without quotes, in which the library may pass it to a shell
STREAM = 1 << 23  # bytes per request for a stream of objects
STORED = re.compile(r"(s3|gs|az|file)://.+")  # object storage, which the library does not read


def shard_urls(urls: str | list[str], *, streaming: bool) -> list[str]:
    """List the shards of one split.

    Args:
        urls: A path or URL with braces (``test-{000..007}.tar``), a glob of files or objects, or several joined by ``::``.
        streaming: Whether the shards are streamed, so that they may be URLs of the web.

    Returns:
        Paths of files and addresses of objects that exist, and URLs that begin with https://, http:// or hf://.

    Raises:
        ValueError: If a shard does not exist, or is a URL of another kind: the webdataset library runs ``pipe:`` in a shell.
    """
    if not isinstance(urls, str):
        raise ValueError(f"the shards of a split are one text, got {urls!r}; join several patterns by ::, or use braces or a glob")
    named = [url for url in expand_urls(urls) if not (Path(url).is_file() and not streaming)]
    for url in named:
        if SCHEME.match(url) and not WEB.fullmatch(url) and not STORED.fullmatch(url):
            raise ValueError(
                f"{url!r} in {urls!r} is no address of a shard: pipe: and other schemes run commands and are refused. Pass files, objects "
                "(s3://, gs://, az://), or with dataset.streaming=true addresses that begin with https://, http:// or hf://"
            )
    found = [path for url in expand_urls(urls) for path in _files(url)]
    web = [url for url in found if WEB.fullmatch(url)]
    missing = [path for path in found if path not in web and not file_at(path).is_file()] + ([] if streaming else web)
    if missing or not found:
        raise ValueError(
            f"{len(missing) or 1} shards do not exist: {', '.join(missing[:3]) or urls}; correct dataset.test, dataset.train or "
            "dataset.validation. Shards on the web can only be streamed (dataset.streaming=true)"
        )
    return found


def _files(url: str) -> list[str]:
    """The files of a glob; a URL, and a path that exists as it is written or is no glob, itself."""
    if WEB.fullmatch(url):
        return [url]
    if STORED.fullmatch(url):
        return [str(file) for file in files_at(url, inside="*.tar")] or [url]
    place = Path(url).expanduser()
    if place.is_file() or not any(mark in place.name for mark in "*?["):
        return [str(place)]
    return sorted(str(path) for path in place.parent.glob(place.name))


def streamed(urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The samples of shards, one shard after the other; raises ValueError where there are none."""
    sample = None
    for sample in group_by_keys(tar_file_expander(_opened(urls))):
        yield sample
    if sample is None:
        raise ValueError(f"the shards {', '.join(urls[:3])} hold no samples; correct dataset.test")


def _opened(urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Each shard as a stream; the library would start a command for those of object storage."""
    for url in urls:
        if STORED.fullmatch(url) and isinstance(file := file_at(url), RemoteFile):
            with file.open(buffering=STREAM) as stream:
                yield {"url": url, "stream": stream}
        else:
            yield from url_opener([{"url": url}])
