"""A Hub for tests, on the loopback interface: enough of its HTTP interface to push and load models and datasets.

Every file is uploaded inside its commit (no large-file storage), every commit replaces the state of `main`; other
revisions do not exist. Clients need `HF_ENDPOINT` and `HF_HUB_DISABLE_XET=1` in their environment before they start.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|preupload|commit|tree|paths-info)/([^/]+)(?:/(.*))?)?"
)
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """Files of the last commit, and the titles of all commits."""

    files: dict[str, bytes] = field(default_factory=dict)
    titles: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.titles).encode()).hexdigest()

    def commit(self, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.titles.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
            else:
                raise ValueError(f"unexpected operation {line['key']}")

    def entries(self, folder: str = "", *, recursive: bool = True) -> list[dict]:
        """Files and folders below `folder`, as the tree of a revision lists them."""
        found = {}
        for path, content in sorted(self.files.items()):
            parts = path.removeprefix(f"{folder}/" if folder else "").split("/")
            if folder and not path.startswith(f"{folder}/"):
                continue
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = "/".join([*([folder] if folder else []), *parts[:depth]])
                found[name] = {
                    "type": "directory",
                    "path": name,
                    "size": 0,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
            if recursive or len(parts) == 1:
                digest = hashlib.sha1(content).hexdigest()
                found[path] = {"type": "file", "path": path, "size": len(content), "oid": digest}
        return list(found.values())


class Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    protocol_version = "HTTP/1.1"
    repositories: dict[tuple[str, str], Repository]

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if found := API.fullmatch(path):
            self.answer_api(*found.groups(), body)
        elif found := RESOLVE.fullmatch(path):
            self.answer_file("datasets" if found[1] else "models", found[2], found[4])
        elif path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(part for part in (request.get("organization"), request["name"]) if part)
            key = (f"{request.get('type') or 'model'}s", name)
            status = 409 if key in self.repositories else 200
            self.repositories.setdefault(key, Repository())
            self.send(status, {"url": f"{self.address}/{name}"})
        elif path == "/api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        else:
            self.send(404, {"error": f"unknown address {path}"})

    do_HEAD = do_POST = do_GET

    def answer_api(
        self, kind: str, name: str, action: str | None, revision: str | None, rest: str | None, body: bytes
    ) -> None:
        repository = self.repositories.get((kind, name))
        if repository is None:
            self.send(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        elif action in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            self.send(200, {"id": name, "sha": repository.sha, "private": False, "tags": [], "siblings": siblings})
        elif action == "preupload":
            files = [
                {"path": entry["path"], "uploadMode": "regular", "shouldIgnore": False}
                for entry in json.loads(body)["files"]
            ]
            self.send(200, {"files": files})
        elif action == "commit":
            repository.commit([json.loads(line) for line in body.splitlines()])
            url = f"{self.address}/{name}/commit/{repository.sha}"
            self.send(200, {"success": True, "commitOid": repository.sha, "commitUrl": url})
        elif action == "paths-info":
            wanted = json.loads(body)["paths"]
            self.send(200, [entry for entry in repository.entries() if entry["path"] in wanted])
        elif (found := repository.entries(rest or "", recursive="recursive=true" in self.path.lower())) or not rest:
            self.send(200, found)
        else:
            self.send(404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound"})

    def answer_file(self, kind: str, name: str, path: str) -> None:
        repository = self.repositories.get((kind, name))
        if repository is None:
            self.send(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        elif path not in repository.files:
            self.send(
                404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.sha}
            )
        else:
            content = repository.files[path]
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": repository.sha,
                "Accept-Ranges": "bytes",
            }
            status, wanted = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted:
                status, total, start = 206, len(content), int(wanted[1])
                content = content[start : int(wanted[2]) + 1 if wanted[2] else None]
                headers["Content-Range"] = f"bytes {start}-{start + len(content) - 1}/{total}"
            self.send(status, content, headers)

    def send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def run_hub() -> Iterator[tuple[str, dict[tuple[str, str], Repository]]]:
    """Run a Hub; gives its address and its repositories by `("models" or "datasets", name)`."""
    repositories: dict[tuple[str, str], Repository] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"repositories": repositories}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
