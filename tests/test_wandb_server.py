"""Online W&B against a server of the test's own on the loopback: what a run and the dashboard send, and that the key is in none of it."""

import base64
import gzip
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import forked
import pytest
import yaml
from conftest import ROOT

from multicrop import cli

KEY = "0123456789abcdef" * 2 + "loopback"
SMALL = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1", "crop=random_k4"]


def operation_of(said: dict) -> str | None:
    """The name of a GraphQL operation, which wandb-workspaces writes into the query alone."""
    found = re.search(r"(?:query|mutation)\s+(\w+)", said.get("query", ""))
    return found and found[1]


class Answers(BaseHTTPRequestHandler):
    """As much of W&B as a run needs: GraphQL, uploads, the file stream; every request is kept in `server.seen`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self._body()
        self.server.seen.append((self.path, self.headers.get("Authorization", ""), body))
        said = json.loads(body) if self.path == "/graphql" else {}
        known = self._graphql(operation_of(said), said.get("variables") or {}, said.get("query", ""))
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
        if operation in ("UpsertView2", "upsertView"):  # a workspace, a report
            view = {"id": "v", "name": given["name"], "displayName": given["displayName"], "project": project | {"entityName": "me"}}
            return {"upsertView": {"view": view | {"spec": given["spec"], "updatedAt": None}, "inserted": True}}
        if operation == "GetProjects":
            return {"models": {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if "internalId" in query:
            return {"project": {"internalId": "p"}}
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
    return [call["variables"] for call in said if operation_of(call) == operation]


def uploads(server, name) -> list[str]:
    """All uploads of a file, at least one."""
    found = [body.decode() for path, _, body in server.seen if path == f"/storage/{name}"]
    assert found
    return found


def stored(server, name) -> str:
    """The last upload of a file."""
    return uploads(server, name)[-1]


def environment(server, tmp_path) -> dict[str, str]:
    """The variables of a process for which this server is W&B."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    wandb = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": KEY, "WANDB_DATA_DIR": f"{tmp_path}/staging"}
    return clean | wandb | {"HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}


def with_the_key(server, tmp_path, **said: str) -> list[str]:
    """Where the key is written: files below `tmp_path`, what was said, bodies of requests. It has to have been in use, in a header."""
    coded = base64.b64encode(f"api:{KEY}".encode()).decode()
    assert any(coded in header or KEY in header for _, header, _ in server.seen)
    written = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    bodies = {f"{number} {path}": body for number, (path, _, body) in enumerate(server.seen)}
    texts = written | bodies | {name: text.encode() for name, text in said.items()}
    return [name for name, text in texts.items() if KEY.encode() in text or coded.encode() in text]


def test_an_online_run_sends_config_summary_tags_and_record_and_no_key(server, tmp_path, capsys):
    knobs = ["logger.project=birds", "logger.tags=[mine]", "trainer.progress=false", "trainer.threads=1"]
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    done = forked.run(["task=zero_shot", *SMALL, *knobs, *paths], env=environment(server, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = (tmp_path / "runs").rglob("metrics.json")
    accuracy = json.loads(metrics.read_text())["rows"]["final"]["accuracy"]

    first = sent(server, "UpsertBucket")[0]
    assert (first["project"], first["groupName"], first["jobType"]) == ("birds", "scenes", "zero_shot")
    assert set(first["tags"]) == {"scenes", "random_k4", "dnd", "descriptions", "tiny", "mine"}
    config = yaml.safe_load(max(uploads(server, "config.yaml"), key=len))  # an early and a late upload may arrive in any order
    assert config["choices"]["value"]["aggregator"] == "dnd" and config["dataset"]["value"]["n_classes"] == 4
    summary = json.loads(stored(server, "wandb-summary.json"))
    assert summary["test/accuracy"] == pytest.approx(accuracy) and summary["encoder_calls"] == 4 * 3 * 5
    artifacts = {call["input"]["artifactTypeName"] for call in sent(server, "CreateArtifact")}
    assert "record" in artifacts and json.loads(stored(server, "metrics.json"))["rows"]["final"]["accuracy"] == accuracy
    streams = [json.loads(body) for path, _, body in server.seen if path.endswith("/file_stream")]
    assert streams[-1]["complete"] is True and streams[-1]["exitcode"] == 0

    with pytest.raises(SystemExit):
        cli.main(["report", str(metrics.parent), "-o", str(tmp_path / "page.html")])
    assert any(path.suffix == ".log" for path in tmp_path.rglob("*")) and (tmp_path / "page.html").is_file()
    assert with_the_key(server, tmp_path, run=done.stdout + done.stderr, page=capsys.readouterr().out) == []


def test_the_dashboard_is_saved_online_as_a_workspace_and_a_report_and_no_key(server, tmp_path):
    pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")
    words = ["dashboard", "--entity", "me", "--project", "birds"]  # in a process of its own: wandb reads its variables once
    done = forked.run(words, cwd=tmp_path, env=environment(server, tmp_path), code="from multicrop.cli import main; main()")
    assert done.returncode == 0, done.stdout + done.stderr
    (workspace,), (report,) = sent(server, "UpsertView2"), sent(server, "upsertView")
    assert (workspace["entityName"], workspace["projectName"], workspace["type"]) == ("me", "birds", "project-view")
    assert (report["entityName"], report["projectName"], report["displayName"]) == ("me", "birds", "multicrop")
    sections = json.loads(workspace["spec"])["section"]["panelBankConfig"]["sections"]
    shape = {section["name"]: [panel["viewType"] for panel in section["panels"]] for section in sections if section["panels"]}
    assert shape == json.loads((ROOT / "tests" / "dashboard_shape.json").read_text())
    assert "images/rescued" in report["spec"] and '"birds"' in report["spec"]  # its panels, and the project they draw
    assert [line for line in done.stdout.splitlines() if "/me/birds" in line]  # where to find both
    assert not (tmp_path / "dashboard.json").exists() and with_the_key(server, tmp_path, dashboard=done.stdout + done.stderr) == []
