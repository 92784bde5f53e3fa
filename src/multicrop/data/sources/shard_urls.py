"""The tar shards that a pattern names: files, or URLs of a stream. Nothing that would run a command is let through."""

import re
from pathlib import Path

from webdataset.shardlists import expand_urls

SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:")
WEB = re.compile(r"(https?|gs|hf)://[\w.~:/?#@!&()*+,;=%\[\]-]+", re.ASCII)  # without quotes, in which the library may pass it to a shell


def shard_urls(urls: str | list[str], *, streaming: bool) -> list[str]:
    """List the shards of one split.

    Args:
        urls: A path or URL with braces (``test-{000..007}.tar``), a glob of files, or several joined by ``::``.
        streaming: Whether the shards are streamed, so that they may be URLs.

    Returns:
        Paths of files that exist, and URLs that begin with https://, http://, gs:// or hf://.

    Raises:
        ValueError: If a shard does not exist, or is a URL of another kind: the webdataset library runs ``pipe:`` in a shell.
    """
    if not isinstance(urls, str):
        raise ValueError(f"the shards of a split are one text, got {urls!r}; join several patterns by ::, or use braces or a glob")
    named = [url for url in expand_urls(urls) if not (Path(url).is_file() and not streaming)]
    for url in named:
        if SCHEME.match(url) and not WEB.fullmatch(url):
            raise ValueError(
                f"{url!r} in {urls!r} is no address of a shard: pipe: and other schemes run commands and are refused. Pass files, or with "
                "dataset.streaming=true addresses that begin with https://, http://, gs:// or hf://"
            )
    found = [path for url in expand_urls(urls) for path in _files(url)]
    web = [url for url in found if WEB.fullmatch(url)]
    missing = [path for path in found if path not in web and not Path(path).is_file()] + ([] if streaming else web)
    if missing or not found:
        raise ValueError(
            f"{len(missing) or 1} shards do not exist: {', '.join(missing[:3]) or urls}; correct dataset.test, dataset.train or "
            "dataset.validation. Shards at a URL can only be streamed (dataset.streaming=true)"
        )
    return found


def _files(url: str) -> list[str]:
    """The files of a glob; a URL, and a path that exists as it is written or is no glob, itself."""
    place = Path(url).expanduser()
    if WEB.fullmatch(url):
        return [url]
    if place.is_file() or not any(mark in place.name for mark in "*?["):
        return [str(place)]
    return sorted(str(path) for path in place.parent.glob(place.name))
