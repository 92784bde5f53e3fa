"""An online W&B run against a server of the test's own on the loopback: what the client sends, and that the key is in none of it."""

import base64
import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from conftest import ROOT

from multicrop import cli

KEY = "0123456789abcdef" * 2 + "loopback"
SMALL = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1", "crop=random_k4"]


class Answers(BaseHTTPRequestHandler):
    """As much of W&B as a run needs: GraphQL, uploads, the file stream; every request is kept in `server.seen`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self._body()
        self.server.seen.append((self.path, self.headers.get("Authorization", ""), body))
        said = json.loads(body) if self.path == "/graphql" else {}
        known = self._graphql(said.get("operationName"), said.get("variables") or {}, said.get("query", ""))
        answer = json.dumps({"data": known} if said else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST

    def log_message(self, *_):
        """Nothing on standard error."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _graphql(self, operation, given, query) -> dict:
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
        if operation == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}}
        if operation == "UpsertBucket":
            bucket = {"id": "r", "name": given["name"], "displayName": "run", "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": [self._place(name) for name in given["files"]]}}
        if operation == "CreateArtifact":
            return {"createArtifact": {"artifact": {"id": "a", "state": "PENDING", "artifactSequence": {"id": "s"}}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            file = {"id": "f", "uploadHeaders": [], "uploadUrl": self._place(given.get("name", "manifest"))["uploadUrl"]}
            kind = "create" if operation.startswith("Create") else "update"
            return {f"{kind}ArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "CreateArtifactFiles":
            files = [
                self._place(file["name"]) | {"uploadHeaders": [], "storagePath": file["name"]} for file in given["input"]["artifactFiles"]
            ]
            edges = [{"node": file | {"artifact": {"id": "a"}}} for file in files]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        return {"project": {"artifact": None}} if "query ArtifactType" in query else {}

    def _place(self, name: str) -> dict:
        return {"name": name, "uploadUrl": f"http://127.0.0.1:{self.server.server_port}/storage/{name}"}


@pytest.fixture
def server():
    """The server in a thread of its own, on a free port of the loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def sent(server, operation) -> list[dict]:
    """The variables of every GraphQL call of this name."""
    said = [json.loads(body) for path, _, body in server.seen if path == "/graphql"]
    return [call["variables"] for call in said if call["operationName"] == operation]


def stored(server, name) -> str:
    """The last upload of a file."""
    return [body.decode() for path, _, body in server.seen if path == f"/storage/{name}"][-1]


def test_an_online_run_sends_config_summary_tags_and_record_and_no_key(server, tmp_path, capsys):
    address = f"http://127.0.0.1:{server.server_port}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    wandb = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "WANDB_DATA_DIR": f"{tmp_path}/staging", "NO_PROXY": "127.0.0.1"}
    knobs = ["logger.project=birds", "logger.tags=[mine]", "trainer.progress=false", "trainer.threads=1"]
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    command = [sys.executable, "run.py", "task=zero_shot", *SMALL, *knobs, *paths]
    env = clean | wandb | {"HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = (tmp_path / "runs").rglob("metrics.json")
    accuracy = json.loads(metrics.read_text())["rows"]["final"]["accuracy"]

    first = sent(server, "UpsertBucket")[0]
    assert (first["project"], first["groupName"], first["jobType"]) == ("birds", "scenes", "zero_shot")
    assert set(first["tags"]) == {"scenes", "random_k4", "dnd", "descriptions", "tiny", "mine"}
    config = yaml.safe_load(stored(server, "config.yaml"))
    assert config["choices"]["value"]["aggregator"] == "dnd" and config["dataset"]["value"]["n_classes"] == 4
    summary = json.loads(stored(server, "wandb-summary.json"))
    assert summary["test/accuracy"] == pytest.approx(accuracy) and summary["encoder_calls"] == 4 * 3 * 5
    artifacts = {call["input"]["artifactTypeName"] for call in sent(server, "CreateArtifact")}
    assert "record" in artifacts and json.loads(stored(server, "metrics.json"))["rows"]["final"]["accuracy"] == accuracy
    streams = [json.loads(body) for path, _, body in server.seen if path.endswith("/file_stream")]
    assert streams[-1]["complete"] is True and streams[-1]["exitcode"] == 0

    with pytest.raises(SystemExit):
        cli.main(["report", str(metrics.parent), "-o", str(tmp_path / "page.html")])
    coded = base64.b64encode(f"api:{KEY}".encode()).decode()
    assert any(coded in header or KEY in header for _, header, _ in server.seen)  # the key was in use, in the header made for it
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = {"the terminal": (done.stdout + done.stderr + capsys.readouterr().out).encode()}
    bodies = {f"{number} {path}": body for number, (path, _, body) in enumerate(server.seen)}
    assert any(name.endswith(".log") for name in written) and f"{tmp_path}/page.html" in written
    assert [name for name, text in (written | said | bodies).items() if KEY.encode() in text or coded.encode() in text] == []
