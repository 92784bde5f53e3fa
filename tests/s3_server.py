"""An S3 server for the tests: buckets in memory, conditional puts, copies, ranges, listings in pages, bulk deletes, and 503 on demand."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

Bucket = dict[str, tuple[bytes, float]]  # content and time by key


@dataclass
class State:
    """What the server holds: buckets, objects per page of a listing, and requests.

    It answers 503 to the next `overloaded` requests and to `every` so many-th request, and 403 to all where all is `forbidden`.
    """

    page: int
    buckets: dict[str, Bucket] = field(default_factory=dict)
    overloaded: int = 0
    every: int = 0
    forbidden: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def tag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def listing(bucket: Bucket, page: int, query: dict[str, list[str]]) -> str:
    """One page of objects and of common prefixes."""
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    after = query.get("continuation-token", [""])[0]
    entries: dict[str, bool] = {}  # key or common prefix, and whether it is a prefix
    for key in sorted(bucket):
        if key.startswith(prefix):
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entries[f"{prefix}{head}/" if mark else key] = bool(mark)
    left = [entry for entry in entries if entry > after]
    body = "".join(f"<CommonPrefixes><Prefix>{escape(e)}</Prefix></CommonPrefixes>" for e in left[:page] if entries[e])
    for key in (entry for entry in left[:page] if not entries[entry]):
        content, written = bucket[key]
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(written)) + f".{int(written % 1 * 1000):03d}Z"
        facts = f"<Key>{escape(key)}</Key><Size>{len(content)}</Size><LastModified>{moment}</LastModified><ETag>{tag(content)}</ETag>"
        body += f"<Contents>{facts}</Contents>"
    more = f"<NextContinuationToken>{escape(left[page - 1])}</NextContinuationToken>" if len(left) > page else ""
    return f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{body}</ListBucketResult>"


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    state: State

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parts(self) -> tuple[str, str, dict[str, list[str]], bytes]:
        """Bucket, key, query and body of the request."""
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        self.state.requests.append((self.command, key))
        return bucket, key, parse_qs(url.query, keep_blank_values=True), self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_request(self) -> None:
        bucket, key, query, body = self.parts()
        with self.state.lock:
            if self.state.overloaded:
                self.state.overloaded -= 1
                return self.answer(503)
            if self.state.every and len(self.state.requests) % self.state.every == 0:
                return self.answer(503)
            if self.state.forbidden:
                return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            return self.route(bucket, key, query, body)

    def route(self, bucket: str, key: str, query: dict[str, list[str]], body: bytes) -> None:
        """Answer a request on a bucket."""
        if self.command == "PUT" and not key:
            self.state.buckets[bucket] = {}
            return self.answer(200)
        if (objects := self.state.buckets.get(bucket)) is None:
            return self.answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        if self.command == "PUT":
            return self.put(objects, key, body)
        if self.command == "GET" and not key:
            return self.answer(200, listing(objects, self.state.page, query).encode())
        if self.command == "POST":
            keys = [node.text for node in ElementTree.fromstring(body).iter() if node.tag.endswith("Key")]  # noqa: S314
            for one in keys:
                objects.pop(one, None)
            told = "".join(f"<Deleted><Key>{escape(one or '')}</Key></Deleted>" for one in keys)
            return self.answer(200, f"<DeleteResult>{told}</DeleteResult>".encode())
        return self.delete(objects, key) if self.command == "DELETE" else self.fetch(objects, key)

    def delete(self, objects: Bucket, key: str) -> None:
        objects.pop(key, None)
        self.answer(204)

    def fetch(self, objects: Bucket, key: str) -> None:
        """An object, a range of it, or its facts."""
        if key not in objects:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        content, written = objects[key]
        facts = {"ETag": tag(content), "Last_Modified": formatdate(written, usegmt=True)}
        if (asked := self.headers.get("Range")) is None:
            return self.answer(200, content, **facts)
        start, end = (int(place) for place in asked.removeprefix("bytes=").split("-"))
        part = content[start : end + 1]
        return self.answer(206, part, Content_Range=f"bytes {start}-{start + len(part) - 1}/{len(content)}", **facts)

    def put(self, objects: Bucket, key: str, body: bytes) -> None:
        if self.headers.get("If-None-Match") == "*" and key in objects:
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        return self.store(objects, key, body, self.headers.get("x-amz-copy-source"))

    def store(self, objects: Bucket, key: str, body: bytes, copied: str | None, status: int = 200) -> None:
        """Keep the body, or a copy of the object that is named."""
        if copied:
            bucket, _, source = unquote(copied).lstrip("/").partition("/")
            if source not in self.state.buckets[bucket]:
                return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            body = self.state.buckets[bucket][source][0]
        objects[key] = body, time.time()
        told = f"<CopyObjectResult><ETag>{escape(tag(body))}</ETag></CopyObjectResult>".encode() if copied else b""
        return self.answer(status, told, ETag=tag(body), Last_Modified=formatdate(objects[key][1], usegmt=True))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

    def log_message(self, *words: object) -> None:
        """Nothing on the terminal."""


def amazon(address: str, secret: str) -> dict[str, str]:
    """The environment of a client."""
    return {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}


@contextmanager
def serving(page: int = 1000, handler: type[Handler] = Handler) -> Iterator[tuple[str, State]]:
    """A running server: its address and what it holds."""
    state = State(page)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"state": state}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        server.server_close()
