"""A Hub for tests, on the loopback interface: enough of its HTTP interface for unmodified clients.

Clients need `HF_ENDPOINT` and `HF_HUB_DISABLE_XET=1` in their environment before they start: `Hub.environment` gives
it. Requests that the clients make are in `Hub.log`, with the bytes that went each way. A server can die in the middle
of an upload (`Hub.die_after_uploads`) and be started again on the same storage and the same port.
"""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_storage import NOW, Refused, Repository, Storage, git_hash, is_large, sha256, to_json

TOKEN = "hf_test_token_that_must_stay_secret"
PREFIX = r"(?:(datasets|spaces)/)?([^/]+/[^/]+)"
API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+?)"
    r"(?:/(revision|preupload|commit|commits|tree|paths-info|refs|tag|branch|settings)(?:/(.*))?)?"
)
RESOLVE = re.compile(rf"/{PREFIX}/resolve/([^/]+)/(.+)")
BATCH = re.compile(rf"/{PREFIX}\.git/info/lfs/objects/batch")
OBJECT = re.compile(r"/large-objects/([0-9a-f]{64})")


@dataclass
class Fault:
    """An answer that is not what was asked for.

    Attributes:
        pattern: Of paths that it strikes.
        status: What is answered; `None`: the file, with one byte changed.
        times: How often, before answers are right again.
        cut_after: Bytes of the right answer after which the connection breaks off.
        is_per_address: Strike no address twice.
        struck: Addresses that it has struck.
        headers: Of the answer.
        method: Requests that it strikes.
    """

    pattern: str
    status: int | None = None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    cut_after: int | None = None
    is_per_address: bool = False
    struck: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Request:
    """One answered request."""

    method: str
    path: str
    status: int
    received: int
    sent: int


class Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    protocol_version = "HTTP/1.1"
    hub: "Hub"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    @property
    def knows_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        self.body = self.read_body()
        fault = self.hub.strike(self.command, unquote(self.path))
        self.cut_after = None if fault is None else fault.cut_after
        if fault is not None and fault.status is not None:
            self.send(fault.status, {"error": "a fault of the test"}, fault.headers)
            return
        self.is_corrupted = fault is not None and fault.cut_after is None
        try:
            self.answer(urlsplit(self.path).path)
        except Refused as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.send(refusal.status, {"error": refusal.message}, headers)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer(self, path: str) -> None:
        """Find who answers; revisions stay quoted, since they may hold slashes."""
        if path == "/api/whoami-v2":
            self.require_token()
            access = {"displayName": "tests", "role": "write", "createdAt": NOW}
            self.send(200, {"type": "user", "name": "someone", "orgs": [], "auth": {"accessToken": access}})
        elif path == "/api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create_repository(json.loads(self.body))
        elif path in ("/api/models", "/api/datasets"):
            query = parse_qs(urlsplit(self.path).query)
            self.send(200, self.hub.storage.listing(path.rpartition("/")[2], query))
        elif found := OBJECT.fullmatch(path):
            self.receive_large_object(found[1])
        elif found := BATCH.fullmatch(path):
            self.send(200, self.batch(json.loads(self.body)), {"Content-Type": "application/vnd.git-lfs+json"})
        elif found := API.fullmatch(path):
            self.answer_repository(self.repository(found[1], found[2]), found[3], found[4] or "")
        elif found := RESOLVE.fullmatch(path):
            self.answer_file(self.repository(found[1] or "models", found[2]), unquote(found[3]), unquote(found[4]))
        else:
            raise Refused(404, None, f"unknown address {self.command} {path}")

    def require_token(self) -> None:
        if not self.knows_token:
            raise Refused(401, None, "Invalid username or password.")

    def repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.storage.repositories.get((kind, unquote(name)))
        if repository is None or (repository.private and not self.knows_token):
            raise Refused(404 if self.knows_token else 401, "RepoNotFound", "Repository not found")
        return repository

    def create_repository(self, request: dict[str, Any]) -> None:
        self.require_token()
        name = "/".join(part for part in (request.get("organization") or "someone", request["name"]) if part)
        kind = f"{request.get('type') or 'model'}s"
        private = request.get("visibility") == "private" or bool(request.get("private"))
        is_new = self.hub.storage.create(kind, name, private=private)
        self.send(200 if is_new else 409, {"url": f"{self.address}/{name}", "name": name, "error": "exists"})

    def batch(self, request: dict[str, Any]) -> dict[str, Any]:
        """Tell the client where to put the large objects that are not there yet."""
        objects = []
        for wanted in request["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.storage.large:
                href = f"{self.address}/large-objects/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def receive_large_object(self, digest: str) -> None:
        with self.hub.receiving:
            if self.hub.die_after_uploads is not None and len(self.hub.storage.uploads) >= self.hub.die_after_uploads:
                self.close_connection = True
                self.hub.kill()
                return
            self.hub.storage.put(digest, self.body)
        self.send(200, b"")

    def answer_repository(self, repository: Repository, action: str | None, rest: str) -> None:
        quoted, _, below = rest.partition("/")
        revision, below = unquote(quoted) or "main", unquote(below)
        if action in ("tag", "branch", "preupload", "commit", "settings"):
            self.require_token()
        if action in (None, "revision"):
            self.send(200, repository.info(repository.at(revision)))
        elif action == "refs":
            self.send(200, self.references(repository))
        elif action == "tag":
            repository.tags[json.loads(self.body)["tag"]] = repository.at(revision).sha
            self.send(200, {})
        elif action == "branch":
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            repository.branches[revision] = repository.at(start).sha
            self.send(200, {})
        elif action == "settings":
            self.send(200, {})
        elif action == "commits":
            commits = [{"id": held.sha, "title": held.title, "date": NOW} for held in repository.commits.values()]
            self.send(200, [{**entry, "message": "", "authors": []} for entry in reversed(commits)])
        elif action == "preupload":
            self.send(200, {"files": [self.upload_mode(repository, revision, f) for f in self.json_body()["files"]]})
        elif action == "commit":
            lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
            commit = self.hub.storage.commit(repository, revision, lines)
            kind = "" if repository.kind == "models" else f"{repository.kind}/"
            url = f"{self.address}/{kind}{repository.name}/commit/{commit.sha}"
            self.send(200, {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})
        elif action == "paths-info":
            wanted = self.json_body()["paths"]
            entries = repository.entries(repository.at(revision))
            self.send(200, [entry for entry in entries if entry["path"] in wanted])
        else:
            recursive = "recursive=true" in self.path.lower()
            entries = repository.entries(repository.at(revision), below, recursive=recursive)
            if below and not entries:
                raise Refused(404, "EntryNotFound", f"{below} does not exist on {revision}")
            self.send(200, entries)

    def json_body(self) -> dict[str, Any]:
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)
        return parse_qs(self.body.decode())

    @staticmethod
    def references(repository: Repository) -> dict[str, Any]:
        def rows(kind: str, found: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": sha} for key, sha in found.items()]

        branches, tags = rows("heads", repository.branches), rows("tags", repository.tags)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    @staticmethod
    def upload_mode(repository: Repository, revision: str, request: dict[str, Any]) -> dict[str, Any]:
        path = request["path"]
        large = is_large(path, request["size"])
        entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        held = repository.at(revision).files.get(path)
        return entry if held is None else {**entry, "oid": sha256(held) if large else git_hash(held)}

    def answer_file(self, repository: Repository, revision: str, path: str) -> None:
        commit = repository.at(revision)
        if path not in commit.files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.sha}
            self.send(404, {"error": "Entry not found"}, headers)
            return
        content = commit.files[path]
        tag = sha256(content) if is_large(path, len(content)) else git_hash(content)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        status, wanted = 200, re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.command == "GET" and self.hub.has_ranges:
            status, total = 206, len(content)
            start = int(wanted[1]) if wanted[1] else max(0, total - int(wanted[2]))
            if start >= total:
                self.send(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            content = content[start : int(wanted[2]) + 1 if wanted[1] and wanted[2] else None]
            if self.hub.meeting:
                self.hub.meeting.wait(timeout=60)
            headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{total}"
        if self.is_corrupted and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send(status, content, {"Content-Type": "application/octet-stream", **headers})

    def send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else to_json(body)
        sent = 0 if self.command == "HEAD" else len(content)
        if sent and self.cut_after is not None:
            sent = min(sent, self.cut_after)
            self.close_connection = True
        self.hub.log.append(Request(self.command, unquote(self.path), status, len(self.body), sent))
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if sent:
            self.wfile.write(content[:sent])


class Server(ThreadingHTTPServer):
    """A server whose open connections can be cut."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server's."""

    def cut(self) -> None:
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client was faster


class Hub:
    """A Hub that can be started, killed and started again; storage and port stay the same.

    Attributes:
        storage: What it keeps.
        log: Requests that were answered, oldest first.
        die_after_uploads: Large objects it takes before it dies in the middle of the next one; never when `None`.
        faults: Wrong answers to come.
        has_ranges: Whether parts of files are sent where a part is asked for.
        meeting: Where requests for parts of files wait for each other before they are answered, if anywhere.
    """

    def __init__(self) -> None:
        self.storage = Storage()
        self.log: list[Request] = []
        self.die_after_uploads: int | None = None
        self.faults: list[Fault] = []
        self.has_ranges = True
        self.meeting: threading.Barrier | None = None
        self.port = 0
        self.died = threading.Event()
        self.receiving = threading.Lock()  # clients upload on several threads
        self._server: Server | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def repositories(self) -> dict[tuple[str, str], Repository]:
        return self.storage.repositories

    def environment(self, home: Path, *, token: str | None = TOKEN, offline: bool = False) -> dict[str, str]:
        """Environment of a client whose cache and settings live in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        return kept | {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": str(int(offline)),
            **({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}),
        }

    def strike(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets, if any."""
        with self.receiving:
            for fault in self.faults:
                if fault.is_per_address and path in fault.struck:
                    continue
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    fault.struck.add(path)
                    fault.times -= 1
                    return fault
        return None

    def sent(self, pattern: str) -> int:
        """Bytes that went to clients in answer to requests whose path matches."""
        return sum(request.sent for request in self.log if re.search(pattern, request.path))

    def start(self) -> None:
        """Serve, on the port of the first start."""
        self._server = Server(self.port, type("HubHandler", (Handler,), {"hub": self}))
        self.port = self._server.server_port
        self.died.clear()
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def kill(self) -> None:
        """Cut all connections and stop answering, from within a request."""
        server, self._server = self._server, None
        if server is not None:
            server.socket.close()
            threading.Thread(target=self._finish, args=(server,), daemon=True).start()
            server.cut()

    def _finish(self, server: Server) -> None:
        server.shutdown()
        server.server_close()
        self.died.set()

    def stop(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.shutdown()
            self._server.cut()
            self._server.server_close()
            self._server = None


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Run a Hub."""
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()
