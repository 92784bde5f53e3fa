"""Servers for the tests that speak the XML interface of Google Cloud Storage and the interface of Azure Blob Storage; see `s3_server`."""

import json
import re
import time
from base64 import b64encode
from xml.sax.saxutils import escape

from s3_server import Bucket, Handler, tag

ACCOUNT = "someone"


class GoogleHandler(Handler):
    """As S3, with other headers of conditions and copies; objects are deleted one by one."""

    def put(self, objects: Bucket, key: str, body: bytes) -> None:
        if self.headers.get("x-goog-if-generation-match") == "0" and key in objects:
            return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        return self.store(objects, key, body, self.headers.get("x-goog-copy-source"))

    def delete(self, objects: Bucket, key: str) -> None:
        self.answer(404 if objects.pop(key, None) is None else 204)


class AzureHandler(Handler):
    """Containers of one account: conditional puts, copies, ranges, listings in pages and deletes in batches."""

    def route(self, bucket: str, key: str, query: dict[str, list[str]], body: bytes) -> None:
        container, _, blob = key.partition("/")
        if bucket != ACCOUNT or (objects := self.state.buckets.get(container)) is None:
            return self.answer(404, b"<Error><Code>ContainerNotFound</Code></Error>")
        command = query.get("comp", [self.command])[0]
        if command == "list":
            return self.answer(200, listing(objects, self.state.page, query).encode())
        if command == "batch":
            return self.batch(objects, body.decode())
        if command == "PUT":
            if self.headers.get("If-None-Match") == "*" and blob in objects:
                return self.answer(409, b"<Error><Code>BlobAlreadyExists</Code></Error>")
            return self.store(objects, blob, body, (self.headers.get("x-ms-copy-source") or "").partition(f"/{ACCOUNT}/")[2], status=201)
        return GoogleHandler.delete(self, objects, blob) if command == "DELETE" else self.fetch(objects, blob)

    def batch(self, objects: Bucket, body: str) -> None:
        parts = []
        for number, key in enumerate(re.findall(rf"^DELETE /{ACCOUNT}/[^/]+/(\S+) HTTP", body, re.MULTILINE)):
            status = "404 The specified blob does not exist." if objects.pop(key, None) is None else "202 Accepted"
            parts.append(f"--part\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n")
        self.answer(202, ("".join(parts) + "--part--\r\n").encode(), Content_Type="multipart/mixed; boundary=part")


def listing(bucket: Bucket, page: int, query: dict[str, list[str]]) -> str:
    """One page of blobs and of common prefixes."""
    prefix, delimiter, after = (query.get(name, [""])[0] for name in ("prefix", "delimiter", "marker"))
    entries: dict[str, bool] = {}  # key or common prefix, and whether it is a prefix
    for key in sorted(key for key in bucket if key.startswith(prefix)):
        head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key[len(prefix) :], "", "")
        entries[f"{prefix}{head}{'/' if mark else ''}"] = bool(mark)
    left, body = [entry for entry in entries if entry > after], ""
    for key in left[:page]:
        name = f"<Name>{escape(key)}</Name>"
        if entries[key]:
            body += f"<BlobPrefix>{name}</BlobPrefix>"
            continue
        content, written = bucket[key]
        facts = f"<Last-Modified>{time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime(written))}</Last-Modified>"
        facts += (
            f"<Content-Length>{len(content)}</Content-Length><Content-Type>text/plain</Content-Type><Etag>{escape(tag(content))}</Etag>"
        )
        body += f"<Blob>{name}<Properties>{facts}<BlobType>BlockBlob</BlobType></Properties></Blob>"
    more = escape(left[page - 1]) if len(left) > page else ""
    return f"<EnumerationResults><Blobs>{body}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>"


def google(address: str, secret: str) -> dict[str, str]:
    """The environment of a client; the key of an account without requests for tokens."""
    account = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": secret, "private_key_id": ""}
    return {"GOOGLE_BASE_URL": address, "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account)}


def azure(address: str, secret: str) -> dict[str, str]:
    """The environment of a client."""
    key = b64encode(secret.encode()).decode()
    return {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": key, "AZURE_STORAGE_ENDPOINT": f"{address}/{ACCOUNT}"}
